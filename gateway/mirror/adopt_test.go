package mirror_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/headgate/headgate/gateway/mirror"
	"github.com/headgate/headgate/gateway/mirror/mirrortest"
)

// A store from before the state database gets into the index without anybody reading it, once.
func TestStoreOlderThanTheIndexIsAdopted(t *testing.T) {
	const n = 30
	up := mirrortest.Start(t)
	for i := range n {
		m, err := mirrortest.ParseTxtar([]byte(module(fmt.Sprintf("example.com/Up%d", i), "v1.0.0")))
		if err == nil {
			err = up.Add(m)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	b := start(t, up, nil)
	for i := range n {
		kind := []string{"info", "mod", "zip"}[i%3]
		b.must(t, fmt.Sprintf("/example.com/!up%d/@v/v1.0.0.%s", i, kind))
	}
	b.must(t, "/sumdb/sum.example.test/lookup/example.com/!up0@v1.0.0")
	up.Forget()
	b.reopen(t, withState(t))
	var list []mirror.Entry
	for try := 0; len(list) < n; try++ { // in the background
		if try > 500 {
			t.Fatalf("the index has %d entries, want %d", len(list), n)
		}
		<-time.After(20 * time.Millisecond)
		var err error
		if list, err = b.Index(t.Context(), time.Time{}, 2000); err != nil {
			t.Fatal(err)
		}
	}
	for i, want := range []string{"missing", "ok", "ok"} { // an .info proves nothing
		if f := b.Facts(t.Context(), fmt.Sprintf("example.com/Up%d", i), "v1.0.0"); f.Age != want || f.Published.IsZero() != (i > 0) {
			t.Errorf("facts of file %d: %+v, want age %s", i, f, want)
		}
	}
	if len(up.Requests()) != 0 {
		t.Errorf("adopting asked %v", up.Requests())
	}
}

func TestUntaggedModuleLearnsFromItsLatest(t *testing.T) {
	const older, newer = "v0.0.0-20240101000000-aaaaaaaaaaaa", "v0.0.0-20240601000000-bbbbbbbbbbbb"
	up := mirrortest.Start(t, module("example.com/m", older),
		"module example.com/m@"+newer+"\n-- go.mod --\n// Deprecated: use example.com/n\nmodule example.com/m\n\n// wrong build\nretract "+older+"\n")
	up.SetLatest("example.com/m", newer)
	b := start(t, up, withState(t))
	if v, err := b.Versions(t.Context(), "example.com/m"); err != nil || len(v.Releases) != 0 {
		t.Fatalf("Versions = %+v, %v", v, err)
	}
	r, err := b.Latest(t.Context(), "example.com/m")
	if err != nil || r.Version != newer || r.Facts.Deprecated.State != "yes" || r.Facts.Retracted.State != "no" {
		t.Errorf("Latest = %+v, %v; want it deprecated, not retracted", r, err)
	}
	if _, f := b.must(t, "/example.com/m/@v/"+older+".zip"); f.Facts.Retracted != (mirror.Flag{State: "yes", Text: "wrong build"}) {
		t.Errorf("an older commit is %+v, want retracted", f.Facts.Retracted)
	}
	// Once there is a tag, it speaks, whatever @latest is.
	tagged, err := mirrortest.ParseTxtar([]byte(module("example.com/m", "v0.1.0")))
	if err == nil {
		err = up.Add(tagged)
	}
	if err != nil {
		t.Fatal(err)
	}
	b.advance(10 * time.Minute)
	for try := 0; b.Facts(t.Context(), "example.com/m", older).Retracted.State != "no"; try++ {
		if try > 500 {
			t.Fatalf("the tag is not heeded: %+v", b.Facts(t.Context(), "example.com/m", older).Retracted)
		}
		if _, err := b.Versions(t.Context(), "example.com/m"); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Latest(t.Context(), "example.com/m"); err != nil {
			t.Fatal(err)
		}
		<-time.After(20 * time.Millisecond)
	}
}
