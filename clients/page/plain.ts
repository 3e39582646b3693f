/** The usual recipe of tutorials: connect again 3 s after `close`, send if the socket is open. */

const RECONNECT_AFTER = 3000;

export class Plain {
  connections = 0;
  /** When the next attempt is made, while there is no connection. */
  reconnectsAt: number | undefined;
  #url: string;
  #socket!: WebSocket;

  constructor(url: string, private on: { open(): void; message(data: string): void; close(): void }) {
    this.#url = url;
    this.#connect();
  }

  #connect(): void {
    this.reconnectsAt = undefined;
    const socket = (this.#socket = new WebSocket(this.#url));
    let wasOpen = false;
    socket.onopen = () => {
      wasOpen = true;
      this.connections++;
      this.on.open();
    };
    socket.onmessage = ({ data }) => this.on.message(data);
    socket.onclose = () => {
      this.reconnectsAt = performance.now() + RECONNECT_AFTER;
      setTimeout(() => this.#connect(), RECONNECT_AFTER);
      if (wasOpen) this.on.close();
    };
  }

  get isOpen(): boolean {
    return this.#socket.readyState === WebSocket.OPEN;
  }

  send(text: string): boolean {
    if (this.isOpen) this.#socket.send(text);
    return this.isOpen;
  }
}
