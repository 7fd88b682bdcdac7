/** A session's WebSocket, connected again whenever it breaks. What frames mean is not known here. */

import { ApiError, call } from "./http";
import { delayMs, verdict, type Verdict } from "./rules/redial";
import { isObject, type Frame } from "./wire";

const PING_EVERY_MS = 20_000;
/** Nothing heard for this long after a ping: the connection is dead, whatever the browser thinks. */
const PATIENCE_MS = 8_000;

export interface StreamEvents {
  query(): string;
  /** May throw: then the connection is made anew. */
  frame(frame: Frame): void;
  lost(): void;
  over(verdict: Exclude<Verdict, "again">): void;
}

export class Stream {
  private socket: WebSocket | null = null;
  private failures = 0;
  private timer = 0;
  private pulse = 0;
  private heard = 0;
  private stopped = false;

  constructor(
    private readonly session: string,
    private readonly events: StreamEvents,
  ) {
    addEventListener("online", this.now);
    document.addEventListener("visibilitychange", this.now);
    this.connect();
  }

  close(): void {
    this.stopped = true;
    clearTimeout(this.timer);
    clearInterval(this.pulse);
    removeEventListener("online", this.now);
    document.removeEventListener("visibilitychange", this.now);
    this.socket?.close();
    this.socket = null;
  }

  /** Send a frame if there is a connection; false otherwise. */
  send(frame: Frame): boolean {
    if (this.socket?.readyState !== WebSocket.OPEN) return false;
    this.socket.send(JSON.stringify(frame));
    return true;
  }

  private readonly now = (): void => {
    if (this.stopped || document.hidden) return;
    if (this.socket === null) {
      clearTimeout(this.timer);
      this.connect();
    } else this.ping();
  };

  private connect(): void {
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    const path = `/v1/sessions/${encodeURIComponent(this.session)}/stream?${this.events.query()}`;
    const socket = new WebSocket(`${scheme}//${location.host}${path}`, "holdover.v1");
    this.socket = socket;
    let opened = false;
    socket.onopen = () => {
      opened = true;
      this.heard = performance.now();
      this.pulse = window.setInterval(() => this.ping(), PING_EVERY_MS);
    };
    socket.onmessage = (event: MessageEvent<string>) => {
      this.heard = performance.now();
      const frame: unknown = JSON.parse(event.data);
      if (!isObject(frame) || typeof frame.type !== "string") return;
      try {
        this.events.frame(frame as Frame);
        this.failures = 0;
      } catch (error) {
        console.warn("holdover: connecting again,", error);
        this.broken(socket);
      }
    };
    socket.onclose = (event) => {
      if (this.socket !== socket) return;
      this.socket = null;
      clearInterval(this.pulse);
      const found = verdict(event.code);
      if (found !== "again") {
        this.stopped = true;
        this.events.over(found);
        return;
      }
      this.events.lost();
      if (!opened) void this.askWhy();
      this.later();
    };
  }

  private later(): void {
    clearTimeout(this.timer);
    this.timer = window.setTimeout(() => {
      if (!this.stopped && this.socket === null) this.connect();
    }, delayMs(this.failures++, Math.random()));
  }

  /** A browser hides why an upgrade was refused; plain HTTP tells. */
  private async askWhy(): Promise<void> {
    try {
      await call("GET", `/v1/sessions/${encodeURIComponent(this.session)}`);
    } catch (error) {
      if (this.stopped || !(error instanceof ApiError)) return;
      if (error.status === 401 || error.status === 404) {
        this.close();
        this.events.over(error.status === 401 ? "login" : "gone");
      }
    }
  }

  private ping(): void {
    const socket = this.socket;
    if (socket === null || !this.send({ type: "ping" })) return;
    const sent = performance.now();
    window.setTimeout(() => {
      if (this.socket === socket && this.heard < sent) this.broken(socket);
    }, PATIENCE_MS);
  }

  /** Give `socket` up without waiting for a close that may never come. */
  private broken(socket: WebSocket): void {
    if (this.socket !== socket) return;
    this.socket = null;
    clearInterval(this.pulse);
    socket.onmessage = socket.onclose = null;
    socket.close();
    this.events.lost();
    this.later();
  }
}
