package policy

import (
	"context"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

// TestListsAreRight generates policies, askers and lists, and changes one leaf after another, also back to what it was:
// the answers to the list are those to its versions one by one, the second time as well, whatever callers do to them.
func TestListsAreRight(t *testing.T) {
	random := rand.New(rand.NewPCG(7, 8))
	steps, known, turned := 0, 0, 0
	for range 3 {
		g := generationOf(t, randomBundle(random))
		in, list := randomList(random)
		var last []Decision
		for range 25 {
			before, was := *in, list[0]
			changed := &list[random.IntN(len(list))]
			if random.IntN(3) > 0 {
				changeLeaf(random, reflect.ValueOf(&changed.Facts).Elem(), "input.resource")
			} else {
				part := random.IntN(2)
				changeLeaf(random, []reflect.Value{reflect.ValueOf(&in.Context).Elem(), reflect.ValueOf(&in.Action).Elem()}[part], []string{"input.context", "input.action"}[part])
			}
			want, err := g.judgeAll(t.Context(), in, list)
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				got, err := g.Release(t.Context(), in, list)
				if err != nil {
					t.Fatal(err)
				}
				for i := range got {
					if !sameAnswer(got[i], want[i]) {
						t.Fatalf("%s in a list is %+v, alone %+v; before the change the asker was %+v and the first version %+v", list[i].Version, got[i], want[i], before, was)
					}
				}
				got[0].Visible, got[1] = !got[0].Visible, Decision{} // as the gateway does to what is hidden
			}
			enc := &encoder{}
			g.release.listKey(enc, in, list[0].Path)
			if g.lists.get(enc.buf, list) != nil {
				known++
			}
			if last != nil && !reflect.DeepEqual(effects(last), effects(want)) {
				turned++
			}
			last = want
			steps++
		}
	}
	if known != steps || turned < steps/20 {
		t.Errorf("%d lists, %d of them known the second time, %d with other answers than before: the test proves little", steps, known, turned)
	}
}

func randomList(random *rand.Rand) (*Input, []Resource) {
	in := &Input{}
	fill(random, reflect.ValueOf(in).Elem(), "input")
	in.Schema, in.Action = InputSchema, NewAction("list")
	list := make([]Resource, 12)
	for i := range list {
		fill(random, reflect.ValueOf(&list[i].Facts).Elem(), "input.resource")
		list[i].Name = NewName("a.test/b", "public")
	}
	return in, list
}

// changeLeaf writes something into one leaf, in place, also of a map.
func changeLeaf(random *rand.Rand, v reflect.Value, path string) {
	if v.Kind() != reflect.Struct {
		if v.Kind() == reflect.Map && v.Len() > 0 && random.IntN(2) == 0 {
			put(random, v, "one", path)
			return
		}
		fill(random, v, path)
		return
	}
	fields := fieldsOf(v.Type())
	f := fields[random.IntN(len(fields))]
	changeLeaf(random, v.FieldByIndex(f.index), path+"."+f.name)
}

func sameAnswer(a, b Decision) bool {
	a.Eval.Cached, a.Eval.NS, b.Eval.Cached, b.Eval.NS = false, 0, false, 0
	return reflect.DeepEqual(a, b)
}

func effects(all []Decision) (said []string) {
	for _, d := range all {
		said = append(said, string(d.Effect)+strings.Join(d.Codes, ","))
	}
	return said
}

// TestResourceEqual changes each leaf of a version in turn: none is left out of the comparison, none is shared with a clone.
func TestResourceEqual(t *testing.T) {
	r := Resource{Name: NewName("a.test/b", "public"), Facts: NewFacts("v1.0.0", "release", 1)}
	r.Vulns.IDs, r.Licences.IDs, r.Provenance = map[string]Vuln{"one": {}}, map[string]bool{"MIT": true}, &Origin{}
	leaves := 0
	var each func(v reflect.Value, path string, check func(path string))
	each = func(v reflect.Value, path string, check func(string)) {
		switch v.Kind() {
		case reflect.Struct:
			for _, f := range fieldsOf(v.Type()) {
				each(v.FieldByIndex(f.index), path+"."+f.name, check)
			}
		case reflect.Pointer:
			each(v.Elem(), path, check)
		case reflect.Slice:
			each(v.Index(0), path+"[0]", check)
		case reflect.Map:
			key := v.MapKeys()[0]
			old, other := v.MapIndex(key), reflect.New(v.Type().Elem()).Elem()
			other.Set(old)
			each(other, path+".*", func(at string) {
				v.SetMapIndex(key, other)
				check(at)
				v.SetMapIndex(key, old)
			})
			v.SetMapIndex(key, reflect.Value{})
			check(path)
			v.SetMapIndex(key, old)
		default:
			leaves++
			old := reflect.New(v.Type()).Elem()
			old.Set(v)
			switch v.Kind() {
			case reflect.String:
				v.SetString(v.String() + "x")
			case reflect.Int:
				v.SetInt(v.Int() + 1)
			case reflect.Bool:
				v.SetBool(!v.Bool())
			}
			check(path)
			v.Set(old)
		}
	}
	kept := r.clone()
	each(reflect.ValueOf(&r).Elem(), "resource", func(path string) {
		if r.equal(&kept) {
			t.Errorf("%s changed and the versions are equal", path)
		}
	})
	if !r.equal(&kept) || leaves < 40 {
		t.Errorf("a clone is equal: %t, after %d leaves", r.equal(&kept), leaves)
	}
	if r.Provenance = nil; r.equal(&kept) || kept.equal(&r) {
		t.Error("no provenance is equal to one")
	}
}

// TestListsCount asks for a list twice: what is counted is what the answers one by one would be.
func TestListsCount(t *testing.T) {
	g := generationOf(t, randomBundle(rand.New(rand.NewPCG(1, 1))))
	in, list := randomList(rand.New(rand.NewPCG(2, 2)))
	list[3].Sumdb = "mismatch" // a guard's answer, never cached
	counted := func(cached bool) (n float64) {
		for _, effect := range []Effect{Allow, Deny} {
			n += testutil.ToFloat64(g.release.metrics.decisions[meterKey{"release", effect, cached}])
		}
		return n
	}
	var counts [3][2]float64
	for i, ask := range []func(context.Context, *Input, []Resource) ([]Decision, error){g.Release, g.judgeAll, g.Release} {
		fresh, cached := counted(false), counted(true)
		if _, err := ask(t.Context(), in, list); err != nil {
			t.Fatal(err)
		}
		counts[i] = [2]float64{counted(false) - fresh, counted(true) - cached}
	}
	if counts[1][0] < 1 || counts[1][1] < 1 || counts[2] != counts[1] {
		t.Errorf("counted fresh and cached: %v when first asked, %v one by one, %v as a list that is known; want the last two equal", counts[0], counts[1], counts[2])
	}
}

// TestListsAreBounded keeps no more versions than it may, and the latest state of a list.
func TestListsAreBounded(t *testing.T) {
	l := &lists{most: 30, entries: map[string]*listed{}}
	_, list := randomList(rand.New(rand.NewPCG(3, 3)))
	for _, key := range []string{"a", "b", "a", "c", "d"} {
		l.put([]byte(key), list, make([]Decision, len(list)))
		if l.get([]byte(key), list) == nil || l.kept > l.most || l.kept != len(list)*len(l.entries) {
			t.Errorf("after %s: %d versions in %d lists, want at most %d and this one among them", key, l.kept, len(l.entries), l.most)
		}
	}
	l.most = 11
	if l.put([]byte("e"), list, make([]Decision, len(list))); l.get([]byte("e"), list) != nil {
		t.Error("a list that is longer than all may be was kept")
	}
}
