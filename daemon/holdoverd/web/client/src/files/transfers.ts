/** The uploads of this page, one after the other; they go on while other pages are looked at. */

import { Notifier } from "../hooks";
import { said } from "../http";
import { send } from "./send";

export interface Transfer {
  readonly key: number;
  readonly name: string;
  readonly size: number;
  sent: number;
  state: "waiting" | "sending" | "sent" | "failed";
  /** Why it failed. */
  reason: string;
  readonly stop: AbortController;
}

class Transfers extends Notifier {
  items: readonly Transfer[] = [];
  /** How many have been sent: what lists files looks again when it grows. */
  finished = 0;
  private last: Promise<void> = Promise.resolve();
  private keys = 0;

  add(files: Iterable<File>, path: string): void {
    for (const file of files) {
      const one: Transfer = {
        key: this.keys++,
        name: file.name,
        size: file.size,
        sent: 0,
        state: "waiting",
        reason: "",
        stop: new AbortController(),
      };
      this.items = [...this.items, one];
      this.last = this.last.then(() => this.run(one, file, path));
    }
    this.changed();
  }

  /** Stop it, or take it off the list where it has ended. */
  drop(one: Transfer): void {
    if (one.state === "sending") one.stop.abort();
    else this.items = this.items.filter((other) => other !== one);
    this.changed();
  }

  private async run(one: Transfer, file: File, path: string): Promise<void> {
    if (!this.items.includes(one)) return;
    one.state = "sending";
    addEventListener("beforeunload", ask);
    this.changed();
    try {
      await send(
        file,
        path,
        (bytes) => {
          one.sent = bytes;
          this.changed();
        },
        one.stop.signal,
      );
      one.state = "sent";
      one.sent = one.size;
      this.finished++;
    } catch (error) {
      one.state = "failed";
      one.reason = said(error);
    }
    if (!this.items.some(({ state }) => state === "waiting")) removeEventListener("beforeunload", ask);
    this.changed();
  }
}

/** Leaving would break it off. */
function ask(event: BeforeUnloadEvent): void {
  event.preventDefault();
}

export const transfers = new Transfers();
