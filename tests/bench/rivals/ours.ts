/** The list of the web client as it is, on a store that has its pages from here. */

import { h, render } from "../../../daemon/holdoverd/web/client/node_modules/preact";
import { Notifier } from "../../../daemon/holdoverd/web/client/src/hooks";
import { Conversation } from "../../../daemon/holdoverd/web/client/src/rules/conversation";
import { MessageList } from "../../../daemon/holdoverd/web/client/src/session/list";
import { later, MESSAGES, PAGE, pageOf, textOf, time } from "./fixture";

function message(n: number, text: string): unknown {
  const body = { type: "assistant", message: { id: `m${n}`, role: "assistant", content: [{ type: "text", text }] } };
  return { seq: n, n, thread: "main", at: n, kind: "assistant", uuid: null, client_id: null, request_id: null, body };
}

class Store extends Notifier {
  readonly conversation = new Conversation();
  readonly outgoing: never[] = [];
  readonly session = null;
  readonly id = "s";
  oldest = MESSAGES / PAGE - 2;
  last = MESSAGES;
  private written = "";

  constructor() {
    super();
    const messages = [...pageOf(this.oldest), ...pageOf(this.oldest + 1)].map((n) => message(n, textOf(n)));
    this.conversation.receive({ type: "messages", messages } as never);
    this.conversation.live = true;
  }

  async load(_: string, page: number): Promise<void> {
    await later();
    this.oldest = Math.min(this.oldest, page);
    this.conversation.main.put({ page, messages: pageOf(page).map((n) => message(n, textOf(n))) } as never);
    this.changed();
  }

  grow(): void {
    this.written += "a few words more ";
    this.conversation.main.blocks.set(0, { index: 0, kind: "text", name: "", text: this.written, stale: false });
    this.changed();
  }

  append(): void {
    this.last += 1;
    this.written = "";
    this.conversation.receive({ type: "messages", messages: [message(this.last, textOf(this.last))] } as never);
    this.changed();
  }
}

const store = new Store();
window.list = {
  view: () => document.querySelector<HTMLElement>(".view")!,
  first: () => Number(document.querySelector<HTMLElement>("[data-page]")!.dataset.page),
  grow: () => store.grow(),
  append: () => store.append(),
};
const app = document.querySelector<HTMLElement>("#app")!;
app.style.display = "flex";
app.style.flexDirection = "column";
time(() => render(h(MessageList as never, { store, goal: null }), app));
