"""Skills: what agents know besides their model, seen, added, versioned and undone.

Owns: the rules (`rules`: front matter, names, which of several skills of a name an agent loads; `tree`:
a skill as data, and what a source may not hold), reading sources (`sources`), what a folder's session
would see (`inventory`), changes (`changes`), Claude Code's plugins (`plugins`), and the daemon's side
(`service`). All but the last run in a **helper** (`helper`), a process of the account's own unit: the
daemon may not read homes, and what an account may not write, Holdover does not write for it.

Promises: a change of one or many skills is a transaction. Whatever is killed, what is found
afterwards is the old state or the new one; a source is checked whole before anything of the account's
is touched; what a change replaced is kept by its contents and can be had back.

Does not: own skills. They stay ordinary folders that agents and people may edit; what was edited is
kept as a version before it is replaced. Nothing of a source is executed, ever; git checks nothing out.
"""
