"""Plants faults in the segmenter, the temporaries and the reductions, and runs the tests that must catch them.

    python tests/run_faults.py [NUMBER ...]

Each fault is one changed piece of text in a copy of the source tree. The table has for each the first test that failed.
The exit status is 1 if a fault was not caught, or if its text is no longer in the source.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
TESTS = (
    "tests/rules/test_segments.py",
    "tests/engines/test_arena.py",
    "tests/rules/test_reductions.py",
    "tests/rules/test_rows_and_columns.py",
    "tests/rules/test_matrix_functions.py",
    "tests/engines/test_reducing_rules.py",
    "tests/engines/test_matrix_functions.py",
    "tests/engines/test_random_rules.py",
)


class Fault(NamedTuple):
    """A piece of text in a file, and the text that replaces it."""

    file: str
    text: str
    replacement: str


SEGMENTS, OPS, GRAPH = "rules/segments.py", "rules/ops.py", "rules/graph.py"
MATRIX, CALLS = "rules/matrix.py", "engines/matrix_calls.py"
FAULTS = [
    # the segmenter
    Fault(SEGMENTS, "default=0) + (node.is_reduction or node.is_call)", "default=0)"),
    Fault(SEGMENTS, "return self.levels[node] - 1, KINDS", "return self.levels[node], KINDS"),
    Fault(SEGMENTS, "k <= self._written(self.outputs[role])", "True"),
    Fault(SEGMENTS, "if output is node and self._written(node) < k and", "if output is node and"),
    Fault(SEGMENTS, '(role not in self.narrow or node.op == "input")', "True"),
    Fault(SEGMENTS, "last_shared = found[node] = max(found[node], last_shared)", "pass"),
    Fault(
        SEGMENTS,
        'elif n.op == "input":  # it has been overwritten\n                return None',
        'elif n.op == "input":\n                operations.add(n)',
    ),
    Fault(SEGMENTS, "if len(counted) <= RECOMPUTED_READS else None", ""),
    Fault(SEGMENTS, "if n in used and not n.is_array", "if n in used and n.kind == 'scalar'"),
    Fault(
        SEGMENTS,
        "for k in sorted({*self.stores, *called_in}, reverse=True)",
        "for k in sorted({*self.stores, *called_in})",
    ),
    Fault(SEGMENTS, "stack += [a for n in reductions for a in n.args]", "stack += [n.args[0] for n in reductions]"),
    Fault(
        "rules/trace.py",
        "live = _live_nodes([*self.outputs.values(), *self.tensor_outputs.values(), *shared])",
        "live = _live_nodes([*self.outputs.values(), *self.tensor_outputs.values()])",
    ),
    Fault(GRAPH, 'return "element" if {"row", "column"} <= found else', "return"),
    # the temporaries
    Fault(
        "engines/arena.py",
        "        if self._taken > len(self._memory):\n            self._memory",
        "        if False:\n            self._memory",
    ),
    Fault("engines/arena.py", "self._taken += -(-size // ALIGNMENT) * ALIGNMENT", "self._taken += size"),
    Fault("engines/arena.py", "self._taken += -(-size // ALIGNMENT) * ALIGNMENT", "self._taken += ALIGNMENT"),
    Fault("optim/rule_optimizer.py", "                self._arena.reset()\n", ""),
    Fault(
        "engines/cpu_programs.py",
        "offsets[self._order] = np.cumsum(counts) - counts",
        "offsets[self._order] = np.cumsum(counts)",
    ),
    Fault(
        "engines/cpu_programs.py",
        'arena.take(len(names) * sum(self._counts("column")), torch.float64)',
        'arena.take(len(names) * sum(self._counts("row")), torch.float64)',
    ),
    # the reductions
    Fault(
        OPS,
        'if x.device.type in ("cpu", "cuda", "meta") else torch.float32',
        "if x.dtype is torch.float64 else torch.float32",
    ),
    Fault(OPS, 'if vectors[0].device.type != "cpu" or len(vectors[0]) <= BLOCK_ELEMENTS:', "if True:"),
    Fault(OPS, "return _total(combine, combine, torch.stack(", "return _total(torch.sum, torch.sum, torch.stack("),
    Fault(OPS, "x.new_full((), -math.inf)", "x.new_zeros(())"),
    Fault(
        "engines/llvm_ir.py",
        'INITIAL_TOTALS = {"sum": 0.0, "dot": 0.0, "amax": -math.inf}',
        'INITIAL_TOTALS = {"sum": 0.0, "dot": 0.0, "amax": 0.0}',
    ),
    Fault("engines/llvm_ir.py", "self.build.and_(larger, self.build.not_(is_nan))", "larger"),
    Fault(
        "engines/llvm_ir.py",
        "(convert(self.build, self(a), DOUBLE) for a in node.args)",
        "(convert(self.build, convert(self.build, self(a), FLOAT), DOUBLE) for a in node.args)",
    ),
    Fault("engines/cpu_kernel.py", '"amax": np.maximum}', '"amax": np.add}'),
    Fault("engines/cpu_kernel.py", "totals[:, column] = ir.INITIAL_TOTALS[op]", "pass"),
    Fault("engines/cpu_kernel.py", "totals[self._has_chunks, column] =", "totals[: len(self._first_chunks), column] ="),
    Fault("engines/cpu_matrix.py", "target.fill_(INITIAL_TOTALS[op])", "pass"),
    Fault(
        "engines/cpu_matrix.py",
        "combine(columns, part[start : start + length], out=columns)",
        "columns.copy_(part[start : start + length])",
    ),
    Fault("engines/llvm_matrix.py", "build.select(ends_matrix, INT64(0), next_middle)", "next_middle"),
    Fault("engines/llvm_matrix.py", "build.sub(outer, first_outer)", "outer"),
    Fault(
        "engines/foreach.py",
        "self._emit(node, product, base, [a for a in dead if a.kind == node.kind])",
        "self._emit(node, product, base, dead)",
    ),
    Fault("engines/cpu_programs.py", "nodes.sort(key=lambda node: node.index)", "pass"),
    Fault("engines/loop.py", "for total in self._totals:\n            return total\n", ""),
    Fault(
        "optim/shared_reductions.py",
        'return partial.scope, None if partial.scope == "optimizer" else group',
        "return partial.scope, group",
    ),
    Fault("engines/protocol.py", 'values.amax() if first.op == "amax" else values.sum()', "values.sum()"),
    # the matrix functions
    Fault(SEGMENTS, "default=0) + (node.is_reduction or node.is_call)", "default=0) + node.is_reduction"),
    Fault(SEGMENTS, "operands = [self._source(a, k) or", "operands = [self._source(a, (k[0] - 1, 0)) or"),
    Fault(SEGMENTS, "n.is_reduction or n.is_call:", "n.is_reduction:"),
    Fault(GRAPH, 'identity = value if op == "call" else repr(value)', "identity = repr(value)"),
    Fault(MATRIX, "return converted.clone() if any(", "return converted if any("),
    Fault(MATRIX, "if versions != [_version(x) for x in arrays]:", "if False:"),
    Fault(MATRIX, "if not first.numel():", "if False:"),
    Fault(CALLS, "batches.setdefault((*shapes, *numbers), [])", "batches.setdefault((*shapes,), [])"),
    Fault(CALLS, "result.contiguous().unbind()", "result.unbind()"),
    Fault(CALLS, "        and t.is_contiguous()\n", ""),
    Fault(CALLS, "        t.data_ptr() == start + i * size\n        and ", "        "),
    Fault(CALLS, "for tensors in arrays]\n        result", "for tensors in arrays[::-1]]\n        result"),
    Fault("engines/foreach.py", "if sum(sizes) <= limit or traced.matrix_functions:", "if sum(sizes) <= limit:"),
    Fault("engines/cpu_programs.py", "key=self._shapes.__getitem__", "key=lambda i: i"),
    Fault("engines/cpu_programs.py", "[t.clone() for t in arrays[str(node.value)]]", "arrays[str(node.value)]"),
    Fault("engines/cpu_programs.py", "while calls and calls[-1].level <= segment.level:", "while calls:"),
    Fault("engines/cpu_programs.py", "changed = np.array(addresses, np.int64)", "changed = addresses"),
    Fault("optim/state.py", "if t.shape != (shape := state.shape_of(p, group)):", "if False and (shape := t.shape):"),
    Fault("optim/rule_optimizer.py", "(p, {**group, **saved})", "(p, group)"),
]


def run(fault: Fault, folder: Path) -> str | None:
    """Run the tests on a copy of the tree with a fault. Return the first test that failed, or None."""
    shutil.copytree(
        ROOT, folder, ignore=shutil.ignore_patterns(".git", ".venv", "runs", "site", ".*_cache", "__pycache__")
    )
    path = folder / "optplug" / fault.file
    source = path.read_text()
    if source.count(fault.text) < 1:
        raise LookupError(f"{fault.file} no longer contains {fault.text!r}")
    path.write_text(source.replace(fault.text, fault.replacement, 1))
    import_path = os.pathsep.join(map(str, (folder, folder / "plugins", folder / "tests")))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-m",
        "not slow",
        "-p",
        "no:xdist",
        "-p",
        "no:cacheprovider",
        *TESTS,
    ]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": import_path, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    if done.returncode == 0:
        return None
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    return failed[1] if failed else f"exit status {done.returncode}"


def main() -> None:
    numbers = [int(text) for text in sys.argv[1:]] or range(1, len(FAULTS) + 1)
    print("| fault | in | instead of | caught by |\n|---|---|---|---|")
    missed = 0
    for number in numbers:
        fault = FAULTS[number - 1]
        with tempfile.TemporaryDirectory() as temporary:
            try:
                caught = run(fault, Path(temporary) / "tree")
            except LookupError as error:
                caught, missed = f"{error}", missed + 1
            else:
                missed += caught is None
        text = " ".join(fault.text.split()).replace("|", "\\|")
        print(f"| {number} | {fault.file} | `{text}` | {caught or '**not caught**'} |", flush=True)
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
