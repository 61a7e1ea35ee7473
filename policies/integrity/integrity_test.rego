package headgate.integrity_test

import data.headgate.integrity
import data.headgate.mock_test as mock

codes(asked) := c if c := {[f.code, f.remedy] | some f in integrity.findings} with input as asked

test_mismatch if codes(mock.resource({"sumdb": "mismatch"})) == {["SUMDB-MISMATCH", "none"]}

test_moved if codes(mock.resource({"origin_drift": "moved"})) == {["ORIGIN-MOVED", "none"]}

test_held if codes(mock.resource({"quarantine": {"state": "held"}})) == {["HELD", "none"]}

test_sound if codes(mock.release) == set()
