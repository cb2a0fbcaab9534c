// The socket: JSON goes out, heads with pictures come in. One command is under way at a time.

const words = {
  1009: "That message was too large.",
  1006: "The connection is lost.",
};

/** The head of a message, and its pictures as {…what it shows, file: Blob, image: ImageBitmap}. */
async function unpack(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  let at = 4 + length;
  const pictures = await Promise.all(head.pictures.map((picture) => {
    const file = new Blob([new Uint8Array(buffer, at, picture.bytes)], { type: picture.type });
    at += picture.bytes;
    return createImageBitmap(file).then((image) => ({ ...picture, file, image }));
  }));
  return [head, pictures];
}

export class Wire {
  /** tell(head, pictures) is called for every message, in order; closed(words, forGood) when the connection ends. */
  constructor(tell, closed) {
    this.tell = tell;
    this.closed = closed;
    this.session = null; // the server's name for this page, by which it comes back to its moments
    this.number = 0;
    this.waiting = null; // of the command under way: its number and what to call when it is done
    this.last = Promise.resolve();
    this.open();
  }

  open() {
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const query = new URLSearchParams(location.search);
    if (this.session) query.set("session", this.session);
    this.socket = new WebSocket(`${scheme}://${location.host}/socket?${query}`);
    this.socket.binaryType = "arraybuffer";
    this.socket.onmessage = (event) => {
      this.last = this.last.then(() => unpack(event.data)).then(([head, pictures]) => this.receive(head, pictures));
    };
    this.socket.onclose = (event) => {
      this.waiting?.resolve(); // nobody will answer
      this.waiting = null;
      const refused = event.code >= 4400;
      this.closed(event.reason || words[event.code] || "The server has ended.", refused);
    };
  }

  receive(head, pictures) {
    if (head.tell === "done") {
      if (this.waiting?.n !== head.n) return;
      const { resolve } = this.waiting;
      this.waiting = null;
      resolve();
    } else {
      this.tell(head, pictures);
    }
  }

  get busy() {
    return this.waiting !== null;
  }

  get ready() {
    return this.socket.readyState === WebSocket.OPEN;
  }

  /** Send a command; resolves when the server is done with it. Only while none is under way. */
  ask(command) {
    this.number += 1;
    const n = this.number;
    return new Promise((resolve) => {
      this.waiting = { n, resolve };
      this.socket.send(JSON.stringify({ ...command, n }));
    });
  }

  stop() {
    if (this.ready) this.socket.send(JSON.stringify({ do: "stop" }));
  }
}
