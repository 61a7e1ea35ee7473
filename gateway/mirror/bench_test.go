package mirror_test

import (
	"fmt"
	"testing"

	"github.com/headgate/headgate/gateway/mirror/mirrortest"
)

func BenchmarkOpenWarm(b *testing.B) {
	up := mirrortest.Start(b, module("example.com/m", "v1.0.0"), module("example.com/m", "v1.1.0"))
	m := start(b, up, nil)
	for _, path := range []string{"/example.com/m/@v/v1.0.0.info", "/example.com/m/@v/v1.0.0.mod", "/example.com/m/@v/list", "/example.com/m/@latest", "/example.com/m/@v/v1.0.0.zip"} {
		b.Run(path[len("/example.com/m/"):], func(b *testing.B) {
			t, err := m.ParseTarget(path)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				f, err := m.Open(b.Context(), t)
				if err != nil {
					b.Fatal(err)
				}
				f.Close()
			}
		})
	}
}

func BenchmarkParseTarget(b *testing.B) {
	m := parser(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := m.ParseTarget("/github.com/%21azure/sdk/@v/v1.2.3.mod"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVersions2000(b *testing.B) {
	up := mirrortest.Start(b)
	var body []byte
	for i := range 2000 {
		body = append(body, fmt.Sprintf("v1.%d.0\n", i)...)
	}
	up.Break("*/list", mirrortest.Fault{Body: body})
	m := start(b, up, nil)
	b.ReportAllocs()
	for b.Loop() {
		if v, err := m.Versions(b.Context(), "example.com/m"); err != nil || len(v.Releases) != 2000 {
			b.Fatal(err)
		}
	}
}
