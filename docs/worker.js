// The search runs in a worker, which browsers refuse to pages that are read from disk. There a hidden frame does its work.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.waiting = [];
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      const inside = frame.contentWindow, script = frame.contentDocument.createElement("script");
      inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }));
      script.src = new URL(url, document.baseURI);
      script.onload = () => {
        this.inside = inside;
        this.waiting.splice(0).forEach(data => this.postMessage(data));
      };
      frame.contentDocument.head.append(script);
      this.frame = frame;
    }
    postMessage(data) {
      if (this.inside) this.inside.dispatchEvent(new this.inside.MessageEvent("message", { data }));
      else this.waiting.push(data);
    }
    terminate() {
      this.frame.remove();
    }
  };
}
