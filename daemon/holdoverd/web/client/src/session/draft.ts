/** What is being typed for a session. It survives a reload, and what the browser does to tabs. */

import { send } from "../files/send";
import { Notifier } from "../hooks";
import { newId, said } from "../http";
import { recall, remember } from "./store";

/** A file that goes with the prompt. `id` is null until storage has it whole. */
export interface Attached {
  readonly key: string;
  readonly name: string;
  readonly size: number;
  sent: number;
  id: string | null;
  trouble: string | null;
}

/** Where attached files stand among the files. */
const FOLDER = "attached";

class Draft extends Notifier {
  text: string;
  files: readonly Attached[];
  private readonly stops = new Map<string, AbortController>();

  constructor(private readonly session: string) {
    super();
    this.text = recall<string>(`draft:${session}`) ?? "";
    this.files = recall<Attached[]>(`draft-files:${session}`) ?? [];
  }

  /** There is something to say, and all that goes with it is there. */
  get ready(): boolean {
    return this.text.trim() !== "" && this.files.every(({ id }) => id !== null);
  }

  put(text: string): void {
    this.text = text;
    remember(`draft:${this.session}`, text === "" ? null : text);
    this.changed();
  }

  attach(files: Iterable<File>): void {
    for (const file of files) {
      const one: Attached = { key: newId(), name: file.name, size: file.size, sent: 0, id: null, trouble: null };
      this.keep([...this.files, one]);
      void this.send(one, file);
    }
  }

  detach(one: Attached): void {
    this.stops.get(one.key)?.abort();
    this.keep(this.files.filter((other) => other.key !== one.key));
  }

  /** The files that were attached, which are the prompt's from now on. */
  takeFiles(): { id: string; name: string }[] {
    const taken = this.files.map(({ id, name }) => ({ id: id!, name }));
    this.keep([]);
    return taken;
  }

  putFiles(files: readonly { id: string; name: string }[]): void {
    this.keep(files.map(({ id, name }) => ({ key: newId(), name, size: 0, sent: 0, id, trouble: null })));
  }

  private async send(one: Attached, file: File): Promise<void> {
    const stop = new AbortController();
    this.stops.set(one.key, stop);
    try {
      const moved = (bytes: number): void => {
        one.sent = bytes;
        this.changed();
      };
      one.id = (await send(file, FOLDER, moved, stop.signal)).id;
    } catch (error) {
      one.trouble = said(error);
    }
    this.stops.delete(one.key);
    this.keep(this.files);
  }

  private keep(files: readonly Attached[]): void {
    this.files = files;
    // What is under way breaks off with the page.
    const whole = files.filter(({ id }) => id !== null);
    remember(`draft-files:${this.session}`, whole.length === 0 ? null : whole);
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
