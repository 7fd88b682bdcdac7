"""One request about skills, answered by a process of the account's own unit; see keeper/PROTOCOL.md.

    python -I -m holdoverd.skills.helper < REQUEST.json      the same by hand, and for the tests

Standard library alone, like the keeper that it is started as. Raises nothing: every end is an answer.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from holdoverd.errors import LaunchError, SkillError
from holdoverd.keeper import account, folders
from holdoverd.skills import inventory, rules, sources, tree
from holdoverd.skills.changes import MAX_VERSIONS, Observer, Put, Store, _quiet
from holdoverd.skills.plugins import PLUGIN, Claude
from holdoverd.skills.sources import Source

Json = dict[str, Any]

TIME_S = 150.0
"""A request that takes longer has failed; changes are not cut off once they are being made."""


def answer(request: Json, home: str, env: dict[str, str], observe: Observer = _quiet) -> Json:
    """``{"ok": true, …}`` or ``{"ok": false, "error": {"code", "message", "details"}}``."""
    try:
        with _time_limit(TIME_S):
            return {"ok": True, **_Helper(request, home, env, observe).run()}
    except SkillError as error:
        code, message, details = error.code, str(error), error.details
    except LaunchError as error:  # cwd_missing, cwd_outside, cwd_denied
        code, message, details = error.code, str(error), {}
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        code, details = "failed", {}
        message = f"{error.strerror or error}{where}; nothing was changed"
    return {"ok": False, "error": {"code": code, "message": message[:2000], "details": details}}


@contextlib.contextmanager
def _time_limit(seconds: float) -> Any:
    def late(*_: object) -> None:
        raise SkillError(
            f"this took longer than {seconds:.0f} s and was given up; nothing was changed",
            code="timed_out",
        )

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class _Helper:
    def __init__(self, request: Json, home: str, env: dict[str, str], observe: Observer) -> None:
        self._request = request
        self._home = home
        self._store = Store(home, observe)
        self._deadline = time.monotonic() + TIME_S - 10
        self._now = time.time_ns() // 1_000_000
        self._cwd: str | None = None
        if request.get("cwd") is not None:
            fd, self._cwd = folders.open_cwd(
                str(request["cwd"]), [str(root) for root in request.get("roots") or ()], home
            )
            os.close(fd)
        self._scope = str(request.get("scope") or ("project" if self._cwd else "personal"))
        config = {str(k): str(v) for k, v in (request.get("env") or {}).items()}
        self._env = env | {"HOME": home} | config
        argv = [str(word) for word in request.get("claude") or ["claude"]]
        with contextlib.suppress(LaunchError):  # said when it is to be started
            argv[0] = account.resolve_program(argv[0], {"USER": "", **self._env}, home)
        self._claude = Claude(argv, self._env, self._cwd or home)

    def run(self) -> Json:
        todo: dict[str, Callable[[], Json]] = {
            "list": self._list,
            "add": self._add,
            "update": self._update,
            "rollback": self._rollback,
            "pin": lambda: self._mark("pinned", True),
            "unpin": lambda: self._mark("pinned", False),
            "enable": self._enable,
            "disable": lambda: self._take_away(keep=True),
            "remove": lambda: self._take_away(keep=False),
            "diff": self._diff,
            "marketplaces": lambda: {"items": list(self._claude.marketplaces().values())},
            "add_marketplace": self._add_marketplace,
            "remove_marketplace": self._remove_marketplace,
            "browse": self._browse,
        }
        op = self._request.get("op")
        if op not in todo:
            raise SkillError(f"{str(op)[:40]!r} is nothing this helper does", code="refused")
        return todo[op]()

    # -- where and which -------------------------------------------------------------------------

    @property
    def _personal(self) -> Path:
        return self._claude.folder / "skills"

    @property
    def _folder(self) -> Path:
        if self._scope == "personal":
            return self._personal
        if self._cwd is None:
            raise SkillError("the project's folder is missing: say which one (cwd)", code="refused")
        return Path(self._cwd, ".claude/skills")

    @property
    def _wanted(self) -> list[str] | None:
        names = self._request.get("names")
        return None if names is None else [str(name) for name in names]

    def _there(self, *, disabled: bool) -> dict[str, bool]:
        """{name: whether its folder is there} of what a change in this scope can be about."""
        folder = self._folder
        found = {}
        with contextlib.suppress(FileNotFoundError):
            found = {
                name: True
                for name in os.listdir(folder)
                if os.path.lexists(folder / name / rules.SKILL_FILE)
            }
        for name in self._store.records(folder) if disabled else ():
            found.setdefault(name, False)
        return found

    def _snapshot(self, name: str) -> str | None:
        """What lies in the skill's folder now, kept as a version; None: nothing does."""
        place = self._folder / name
        if not os.path.lexists(place):
            return None
        path = os.path.realpath(place) if place.is_symlink() else str(place)
        return self._store.keep(sources.read_folder(path, f"the skill {name!r} that is there"))

    def _record(self, name: str) -> Json:
        """Its record, made where it was not Holdover that installed it."""
        record: Json = self._store.records(self._folder).setdefault(
            name,
            {"source": {"kind": "local"}, "version": None, "history": [], "pinned": False,
             "enabled": True, "installed_at": None},
        )  # fmt: skip
        return record

    def _keep_what_is_there(self, name: str, record: Json) -> None:
        """Before it is replaced or taken away: as it is, edits included, into its history."""
        now = self._snapshot(name)
        if now is not None and now != record["version"]:
            _into_history(record, now)
            record["version"] = now

    # -- changes ---------------------------------------------------------------------------------

    def _commit(self, puts: list[Put]) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)  # what is begun now is brought to its end
        self._store.commit(puts)
        self._store.tidy()

    def _check_trust(self, said: Sequence[str], what: str) -> None:
        if said and not self._request.get("trust"):
            raise SkillError(
                f"{what} can run programs as this account: {'; '.join(list(said)[:8])}"
                f"{' …' if len(said) > 8 else ''}. Look at it, then say that you trust it (--yes)",
                code="untrusted",
                details={"executables": list(said)[:200]},
            )

    def _add(self) -> Json:
        text = str(self._request.get("source") or "")
        if PLUGIN.fullmatch(text):
            return self._change_plugin("install", text)
        source = sources.parse_source(
            text, self._request.get("ref"), str(self._request.get("folder") or ""), self._home
        )
        found = tree.find_skills(sources.read(source, self._deadline), sources.own_name(source))
        wanted = self._wanted
        if wanted is None and len(found) > 1 and self._request.get("all") is False:
            raise SkillError(
                f"the source holds {len(found)} skills: {', '.join(sorted(found)[:40])}. Name those"
                " to install, or ask for all",
                code="refused",
                details={"names": sorted(found)},
            )
        chosen = tree.select(found, wanted)
        said: list[str] = []
        troubles = []
        for name in chosen:
            try:
                tree.check(name, found[name])
            except SkillError as error:
                troubles.append(str(error))
            said += tree.runs(name, found[name])
        if troubles:
            raise SkillError(" ".join(troubles[:5]), code="refused")
        self._check_trust(said, text)
        with self._store.locked():
            results: list[Json] = []
            puts: list[Put] = []
            for name in chosen:
                known = name in self._store.records(self._folder)
                there = os.path.lexists(self._folder / name)
                if there and not known and not self._request.get("replace"):
                    raise SkillError(
                        f"there is a skill {name!r} in {self._folder} that Holdover did not install;"
                        " say that it is to be replaced (its present state is kept)",
                        code="conflict",
                    )
                record = self._record(name)
                result = self._replace(name, record, found[name], puts)
                record["source"] = {**source._asdict(), "name": name}
                results.append(result)
            self._commit(puts)
        return {"changed": results}

    def _replace(self, name: str, record: Json, new: tree.Tree, puts: list[Put]) -> Json:
        """Plan to have `new` in place of what is there; says what changes."""
        self._keep_what_is_there(name, record)
        before = record["version"] if os.path.lexists(self._folder / name) else None
        after = self._store.keep(new)
        _into_history(record, after)
        record |= {"version": after, "enabled": True, "installed_at": self._now, "update": None}
        record.pop("removed_at", None)
        if before != after:
            puts.append(Put(self._folder / name, after))
        return {"name": name, "from": before, "to": after, "changed": before != after}

    def _update(self) -> Json:
        if (plugin := self._plugin()) is not None:
            return self._change_plugin("update", plugin)
        results: list[Json] = []
        due: dict[str, tuple[Source, str]] = {}
        with self._store.locked():
            names, one = self._chosen(disabled=False)
            for name in names:
                record = self._store.records(self._folder).get(name)
                note = _not_updated(record)
                if note and one:
                    raise SkillError(f"the skill {name!r} {note}", code="conflict")
                if note or record is None:
                    results.append({"name": name, "changed": False, "note": note})
                else:
                    due[name] = _source_of(record)
        # Nobody waits for a slow source: the lock is let go of meanwhile.
        new = self._fetch(due)
        with self._store.locked():
            records = self._store.records(self._folder)
            said: list[str] = []
            for name, source in due.items():
                record = records.get(name)
                if record is None or record["pinned"] or _source_of(record) != source:
                    raise SkillError(
                        f"the skill {name!r} was changed by somebody else meanwhile",
                        code="conflict",
                    )
                if tree.digest(new[name]) != record["version"]:
                    said += tree.runs(name, new[name])
            self._check_trust(said, "the update")
            puts: list[Put] = []
            for name in due:
                results.append(self._replace(name, records[name], new[name], puts))
            self._commit(puts)
        return {"changed": sorted(results, key=lambda result: str(result["name"]))}

    def _fetch(self, due: dict[str, tuple[Source, str]]) -> dict[str, dict[str, tree.Entry]]:
        """{name: what its source holds of it now}, checked; each source is read once."""
        read: dict[Source, dict[str, dict[str, tree.Entry]]] = {}
        found = {}
        for name, (source, inside) in due.items():
            if source not in read:
                entries = sources.read(source, self._deadline)
                read[source] = tree.find_skills(entries, sources.own_name(source))
            if inside not in read[source]:
                raise SkillError(
                    f"the skill {inside!r} is no longer in {sources.shown(source.place)}",
                    code="not_found",
                )
            found[name] = read[source][inside]
            tree.check(name, found[name])
        return found

    def _rollback(self) -> Json:
        with self._store.locked():
            names, one = self._chosen(disabled=True)
            puts: list[Put] = []
            results = []
            for name in names:
                record = self._store.records(self._folder).get(name)
                history = record["history"] if record else []
                if record is not None:
                    self._keep_what_is_there(name, record)
                    history = record["history"]
                there = os.path.lexists(self._folder / name)
                to = self._request.get("to")
                if to is not None:
                    target = _by_prefix(name, history, str(to))
                elif record is not None and not there and history:
                    target = record["version"]  # removed or disabled: as it was
                elif record is not None and record["version"] in history[1:]:
                    target = history[history.index(record["version"]) - 1]
                elif one:
                    raise SkillError(
                        f"no earlier version of the skill {name!r} is kept", code="conflict"
                    )
                else:
                    results.append(
                        {"name": name, "changed": False, "note": "nothing to go back to"}
                    )
                    continue
                assert record is not None, "what has versions has a record"
                before = record["version"] if there else None
                record |= {"version": target, "enabled": True}
                record.pop("removed_at", None)
                if before != target:
                    puts.append(Put(self._folder / name, target))
                results.append(
                    {"name": name, "from": before, "to": target, "changed": before != target}
                )
            self._commit(puts)
        return {"changed": results}

    def _enable(self) -> Json:
        if (plugin := self._plugin()) is not None:
            return self._change_plugin("enable", plugin)
        with self._store.locked():
            names, one = self._chosen(disabled=True)
            puts: list[Put] = []
            results: list[Json] = []
            for name in names:
                record = self._store.records(self._folder).get(name)
                there = os.path.lexists(self._folder / name)
                if there or record is None or record["version"] is None:
                    results.append({"name": name, "changed": False, "note": "is enabled"})
                    continue
                if record.get("removed_at"):
                    if one:
                        raise SkillError(
                            f"the skill {name!r} was removed; roll it back", code="conflict"
                        )
                    continue
                record["enabled"] = True
                puts.append(Put(self._folder / name, record["version"]))
                results.append(
                    {"name": name, "from": None, "to": record["version"], "changed": True}
                )
            self._commit(puts)
        return {"changed": results}

    def _take_away(self, *, keep: bool) -> Json:
        """Disable (`keep`: it stays on the list) or remove; either way it can be had back."""
        if (plugin := self._plugin()) is not None:
            return self._change_plugin("disable" if keep else "uninstall", plugin)
        with self._store.locked():
            names, _ = self._chosen(disabled=True)
            puts: list[Put] = []
            results: list[Json] = []
            for name in names:
                record = self._record(name)
                self._keep_what_is_there(name, record)
                there = os.path.lexists(self._folder / name)
                record["enabled"] = False
                if not keep:
                    record["removed_at"] = self._now
                if there:
                    puts.append(Put(self._folder / name, None))
                results.append(
                    {
                        "name": name,
                        "from": record["version"],
                        "to": None,
                        "changed": there or not keep,
                    }
                )
            self._commit(puts)
        return {"changed": results}

    def _mark(self, field: str, value: bool) -> Json:
        with self._store.locked():
            names, one = self._chosen(disabled=True)
            results = []
            for name in names:
                record = self._store.records(self._folder).get(name)
                if record is None:
                    if one:
                        raise SkillError(
                            f"the skill {name!r} was not installed by Holdover, which will not update"
                            " it anyway",
                            code="conflict",
                        )
                    continue
                results.append({"name": name, "changed": record[field] != value})
                record[field] = value
            self._store.save()
        return {"changed": results}

    def _chosen(self, *, disabled: bool) -> tuple[list[str], bool]:
        """(the names asked for, whether it is one by its own name)."""
        wanted = self._wanted
        found = self._there(disabled=disabled)
        records = self._store.records(self._folder)
        exact = wanted is not None and len(wanted) == 1 and wanted[0] in found
        if wanted is None or any(set(name) & set("*?[") for name in wanted):
            # A pattern is about what is on the list, not about what was removed.
            found = {
                name: t for name, t in found.items() if not records.get(name, {}).get("removed_at")
            }
        return tree.select(found, wanted), exact

    # -- plugins ---------------------------------------------------------------------------------

    def _plugin(self) -> str | None:
        """The plugin that is meant, where one is: plugin@marketplace."""
        wanted = self._wanted
        return wanted[0] if wanted and len(wanted) == 1 and PLUGIN.fullmatch(wanted[0]) else None

    def _change_plugin(self, action: str, plugin: str) -> Json:
        if action in ("install", "update") and not self._request.get("trust"):
            self._check_trust(self._claude.brings(plugin), plugin)
        self._claude.plugin(action, plugin, self._scope)
        return {"changed": [{"name": plugin, "changed": True}]}

    def _add_marketplace(self) -> Json:
        source = str(self._request.get("source") or "")
        name = self._claude.add_marketplace(source)
        return {"marketplace": self._claude.marketplaces().get(name, {"name": name})}

    def _remove_marketplace(self) -> Json:
        self._claude.remove_marketplace(str(self._request.get("name")))
        return {}

    def _browse(self) -> Json:
        name = str(self._request.get("name"))
        if self._request.get("refresh"):
            self._claude.update_marketplace(name)
        items, problems = self._claude.browse(name, self._request.get("q"))
        return {"items": items, "problems": problems[:100]}

    # -- looking ---------------------------------------------------------------------------------

    def _list(self) -> Json:
        with self._store.locked():
            plugins = self._claude.installed(self._cwd)
            items = inventory.look(self._store, self._personal, self._cwd, self._home, plugins)
        kinds = {"personal": ("personal", "plugin"), "project": ("project", "nested")}
        wanted = self._request.get("scope")
        if wanted is not None:
            items = [item for item in items if item["scope"] in kinds[str(wanted)]]
        return {"items": items}

    def _diff(self) -> Json:
        """From what is there to a kept version, or (`to` is None) to what the source holds now."""
        to = self._request.get("to")
        with self._store.locked():
            names, _ = self._chosen(disabled=True)
            name = names[0]
            record = self._store.records(self._folder).get(name)
            if to is not None:
                version = _by_prefix(name, record["history"] if record else [], str(to))
                new: tree.Tree = self._store.read(version)
            elif record is None or record["source"]["kind"] == "local":
                raise SkillError(
                    f"the skill {name!r} {_not_updated(None)}; say which version (to)",
                    code="conflict",
                )
        if to is None:
            assert record is not None, "refused above"
            new = self._fetch({name: _source_of(record)})[name]
            version = tree.digest(new)
        old: dict[str, tree.Entry] = {}
        now = None
        with self._store.locked():
            if (self._folder / name).exists():
                old = sources.read_folder(
                    os.path.realpath(self._folder / name), f"the skill {name!r}"
                )
                now = tree.digest(old)
            record = self._store.records(self._folder).get(name)
            if to is None and record is not None:
                record["update"] = version if version != record["version"] else None
                self._store.save()
        return {
            "name": name,
            "from": now,
            "to": version,
            "files": tree.compare(old, new),
            "executables": tree.runs(name, new) if version != now else [],
        }


def _source_of(record: Json) -> tuple[Source, str]:
    source = record["source"]
    return (
        Source(source["kind"], source["place"], source["ref"], source["folder"]),
        source["name"],
    )


def _not_updated(record: Json | None) -> str | None:
    """Why an update leaves it alone; None: it does not."""
    if record is None or record["source"]["kind"] == "local":
        return "did not come from a source, so there is nothing to update it from"
    if record["pinned"]:
        return "is pinned; unpin it first"
    return None


def _into_history(record: Json, version: str) -> None:
    """Behind the present one; what was ahead of it after a rollback stays, before it."""
    history: list[str] = [kept for kept in record["history"] if kept != version]
    record["history"] = [*history, version][-MAX_VERSIONS:]


def _by_prefix(name: str, history: Sequence[str], prefix: str) -> str:
    hits = [version for version in history if prefix and version.startswith(prefix)]
    if len(hits) != 1:
        raise SkillError(
            f"{prefix[:64]!r} is {'no' if not hits else 'more than one'} kept version of the skill"
            f" {name!r}; there are {', '.join(v[:12] for v in history) or 'none'}",
            code="not_found",
        )
    return hits[0]


def main() -> int:
    """One request from stdin, its answer on stdout."""
    entry = account.passwd_entry()
    home = os.environ.get("HOME") or entry.pw_dir
    env = account.agent_environment(os.environ, entry, {})
    print(json.dumps(answer(json.load(sys.stdin), home, env)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
