"""A fixed, short set of the cases of the fuzzer of checkpoints."""

import fuzz_checkpoints


def test_spoilt_checkpoints_are_refused_or_load_whole():
    counts, failures = fuzz_checkpoints.fuzz(range(2000))
    assert not failures, "\n".join(map(str, failures))
    for kind in ("file", *fuzz_checkpoints.SUBJECTS):
        assert counts[kind, "refused"] and (kind == "file" or counts[kind, "loaded"])
