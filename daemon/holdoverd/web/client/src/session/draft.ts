/** What is being typed for a session. It survives a reload, and what the browser does to tabs. */

import { Notifier } from "../hooks";
import { recall, remember } from "./store";

class Draft extends Notifier {
  text: string;

  constructor(private readonly session: string) {
    super();
    this.text = recall<string>(`draft:${session}`) ?? "";
  }

  put(text: string): void {
    this.text = text;
    remember(`draft:${this.session}`, text === "" ? null : text);
    this.changed();
  }
}

const drafts = new Map<string, Draft>();

export function draftOf(session: string): Draft {
  let draft = drafts.get(session);
  if (draft === undefined) {
    draft = new Draft(session);
    drafts.set(session, draft);
  }
  return draft;
}
