package audit

import (
	"testing"
	"testing/synctest"
	"time"
)

// A47: the key changes while records come. Each record is covered by a checkpoint that verifies with both keys; with the
// old key alone the log does not verify.
func TestA47KeyChangesUnderLoad(t *testing.T) { synctest.Test(t, keyChangesUnderLoad) }

func keyChangesUnderLoad(t *testing.T) {
	dir := t.TempDir()
	l, err := Open(smallConfig(dir), Options{Cluster: "test", Node: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	first := l.key.until
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	old := read(t, epochKeys(dir, 0).list)
	time.Sleep(time.Until(first.Add(-keySlack - 5*time.Second)))
	if l, err = Open(smallConfig(dir), Options{Cluster: "test", Node: "n1"}); err != nil {
		t.Fatal(err)
	}
	if ring, err := openKeys(read(t, epochKeys(dir, 0).list)); err != nil || len(ring) != 1 {
		t.Fatalf("before: %d keys, %v", len(ring), err)
	}
	for range 200 { // for ten seconds
		appendTo(t, l, 1)
		time.Sleep(50 * time.Millisecond)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if ring, err := openKeys(read(t, epochKeys(dir, 0).list)); err != nil || len(ring) != 2 {
		t.Errorf("after: %d keys, %v; want the old and the new", len(ring), err)
	}
	report, err := Verify(t.Context(), dir, VerifyOptions{})
	if err != nil || report.Records < 200 {
		t.Errorf("Verify with both keys: %d records, %v", report.Records, err)
	}
	if _, c, err := newestCheckpoint(layout{dir: dir}); err != nil || c.size != report.Records {
		t.Errorf("the newest checkpoint counts %d of %d records, %v", c.size, report.Records, err)
	}
	_, err = Verify(t.Context(), dir, VerifyOptions{Keys: string(old)})
	wantDamage(t, err, ExitKey, -1)
}
