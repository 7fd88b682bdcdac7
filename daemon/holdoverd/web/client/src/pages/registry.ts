/**
 * The pages there are. One more capability is one more row: `name` is the first part of its address,
 * `label` puts it into the navigation, `view` gets the parts that follow.
 */

import type { FunctionComponent } from "preact";
import { strings } from "../strings";
import { FilesPage } from "./files";
import { SessionPage } from "./session";
import { SessionsPage } from "./sessions";
import { InstancesPage } from "./instances";
import { TokensPage } from "./tokens";
import { NewSessionPage } from "./new";
import { PhonePage } from "./phone";
import { SearchPage } from "./search";
import { JobsPage } from "./jobs";
import { SkillsPage } from "./skills";

export interface PageProps {
  parts: string[];
}

export interface PageEntry {
  name: string;
  label: string | null;
  /** Only for those who may do everything; others do not see it. */
  admin?: boolean;
  view: FunctionComponent<PageProps>;
}

export const PAGES: readonly PageEntry[] = [
  { name: "", label: strings.sessions, view: SessionsPage },
  { name: "new", label: null, view: NewSessionPage },
  { name: "session", label: null, view: SessionPage },
  { name: "search", label: strings.search, view: SearchPage },
  { name: "files", label: strings.files.title, view: FilesPage },
  { name: "jobs", label: strings.jobs.title, view: JobsPage },
  { name: "skills", label: strings.skills.title, view: SkillsPage },
  { name: "tokens", label: strings.tokens.title, view: TokensPage, admin: true },
  { name: "instances", label: strings.instances.title, view: InstancesPage, admin: true },
  { name: "phone", label: strings.phone, view: PhonePage },
];
