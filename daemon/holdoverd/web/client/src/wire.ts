/** The wire's shapes, as far as this client reads them. Unknown fields are left alone. */

export type State = "starting" | "idle" | "working" | "waiting" | "dormant" | "ended" | "failed";

export const STATES: readonly State[] = ["waiting", "working", "idle", "starting", "dormant", "failed", "ended"];

/** What an agent may do without asking. */
export const MODES = ["default", "acceptEdits", "plan", "bypassPermissions", "dontAsk", "auto"];

export type Json = Record<string, unknown>;

export interface Permission {
  request_id: string;
  seq: number;
  thread: string;
  tool_name: string | null;
  input: unknown;
  suggestions: Json[];
  title: string | null;
  at: number;
}

export interface ThreadLevel {
  thread: string;
  parent_thread: string | null;
  title: string | null;
  n: number;
  state: string | null;
}

export interface Session {
  id: string;
  epoch: string;
  owner: string;
  agent: string;
  cwd: string | null;
  title: string | null;
  model: string | null;
  permission_mode: string | null;
  share: "read" | "write" | null;
  state: State;
  last_seq: number;
  threads: ThreadLevel[];
  pending: Permission[];
  queued: string[];
  cost_usd: number | null;
  context: { used: number; limit: number } | null;
  generation: number | null;
  release: string | null;
  error: { code: string; message: string } | null;
  created_at: number;
  updated_at: number;
  ended_at: number | null;
}

export type Kind = "user" | "assistant" | "result" | "system" | "permission" | "answer" | "notice";

export interface Message {
  seq: number;
  n: number;
  thread: string;
  at: number;
  kind: Kind;
  uuid: string | null;
  client_id: string | null;
  request_id?: string;
  body: Json;
}

export interface Page {
  thread: string;
  page: number;
  sealed: boolean;
  epoch: string;
  messages: Message[];
}

/** Any frame of the stream; fields by `type`. */
export interface Frame {
  type: string;
  [field: string]: unknown;
}

export const MAIN = "main";
export const PAGE_SIZE = 100;

/** The page that holds a thread's n-th message. */
export function pageOf(n: number): number {
  return Math.floor((n - 1) / PAGE_SIZE);
}

export function isObject(value: unknown): value is Json {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** What a session is called: its title, else its folder's name. */
export function titleOf(session: Session): string {
  return session.title || session.cwd?.split("/").filter(Boolean).at(-1) || session.id;
}

export interface Skill {
  name: string;
  called: string;
  description: string;
  scope: string;
  path: string;
  source: string | null;
  version: string | null;
  versions: string[];
  update: string | null;
  effective: boolean;
  enabled: boolean;
  pinned: boolean;
  modified: boolean;
  tokens: number;
  problems: string[];
}

export interface SkillDiff {
  name: string;
  from: string | null;
  to: string;
  files: { path: string; change: string; diff: string | null }[];
  executables: string[];
}

export interface Market {
  name: string;
  source: string;
}

export interface Plugin {
  name: string;
  plugin: string;
  description: string;
  installed: boolean;
}

export interface StoredFile {
  id: string;
  name: string;
  path: string;
  size: number;
  verified: "sha256" | "parts" | "size" | null;
  state: "uploading" | "ready" | "deleted";
  created_at: number;
}

export interface Link {
  id: string;
  file: string;
  password: boolean;
  max_downloads: number | null;
  downloads: number;
  expires_at: number | null;
  revoked_at: number | null;
}

export interface UploadLink {
  id: string;
  path: string;
  max_bytes: number;
  used_bytes: number;
  expires_at: number | null;
  revoked_at: number | null;
}

export type JobState = "ready" | "running" | "done" | "dead" | "cancelled";

export interface Job {
  id: string;
  owner: string;
  processor: string;
  files: string[];
  params: Json;
  state: JobState;
  attempt: number;
  max_attempts: number;
  progress: { bytes: number; total: number | null } | null;
  result: { text?: string; files: string[] } | null;
  error: string | null;
  session: string | null;
  created_at: number;
  started_at: number | null;
  finished_at: number | null;
}

export interface JobLog {
  attempt: number;
  text: string;
  size: number;
}

export interface Token {
  id: string;
  name: string;
  owner: string;
  scopes: string[];
  created_at: number;
  expires_at: number | null;
}

export interface Instance {
  host: string | null;
  generation: number;
  release: string | null;
  state: string;
  sessions: number | null;
  connections: number | null;
  memory_bytes: number | null;
  since_at: number | null;
}
