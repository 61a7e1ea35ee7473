package mirror

import (
	"context"
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// ErrBusy means that too many cold fetches wait for their turn: queue full.
var ErrBusy = errors.New("queue full: too many cold files are being fetched")

// The lanes, values of the label "lane". A slow source fills its own lane and
// leaves the others alone: a .mod does not wait for zips, and nothing waits
// for toolchains or for a private source that hangs.
var laneNames = []string{"small", "zip", "toolchain", "private"}

// queue bounds the work of cold targets. Who holds a slot waits for nobody
// else's, so that the lanes cannot lock each other: only fetch, renew and what
// is asked of a checksum database take one.
type queue map[string]*lane

// lane has so many slots, and so many places in the line before them.
type lane struct {
	slots, line      chan struct{}
	running, waiting prometheus.Gauge
	refused          prometheus.Counter
}

func newQueue(slots, line int64, r prometheus.Registerer) queue {
	running := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "headgate_fetches_running", Help: "Cold files, lists and checksum records that are being fetched.",
	}, []string{"lane"})
	waiting := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "headgate_fetches_waiting", Help: "Cold fetches that wait for a slot.",
	}, []string{"lane"})
	refused := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "headgate_fetches_refused_total", Help: "Cold fetches refused because too many wait already.",
	}, []string{"lane"})
	if r != nil {
		r.MustRegister(running, waiting, refused)
	}
	q := queue{}
	for _, name := range laneNames {
		n := slots
		if name == "toolchain" {
			n = max(1, slots/8) // each of them is as large as a hundred modules
		}
		q[name] = &lane{
			slots: make(chan struct{}, n), line: make(chan struct{}, line),
			running: running.WithLabelValues(name), waiting: waiting.WithLabelValues(name), refused: refused.WithLabelValues(name),
		}
	}
	return q
}

// laneOf is where a target waits.
func (m *Mirror) laneOf(t Target) *lane {
	switch {
	case t.Path != "" && m.Visibility(t.Path) == Private:
		return m.queue["private"]
	case t.Kind == Zip && t.Path == "golang.org/toolchain":
		return m.queue["toolchain"]
	case t.Kind == Zip:
		return m.queue["zip"]
	}
	return m.queue["small"]
}

// enter waits for a slot, in order of arrival; leave gives it back. It fails
// with ErrBusy at once where the line is full.
func (l *lane) enter(ctx context.Context) (leave func(), err error) {
	select {
	case l.slots <- struct{}{}:
	default:
		if err := l.wait(ctx); err != nil {
			return nil, err
		}
	}
	l.running.Inc()
	return func() {
		l.running.Dec()
		<-l.slots
	}, nil
}

func (l *lane) wait(ctx context.Context) error {
	select {
	case l.line <- struct{}{}:
	default:
		l.refused.Inc()
		return ErrBusy
	}
	l.waiting.Inc()
	defer func() {
		l.waiting.Dec()
		<-l.line
	}()
	select {
	case l.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for a turn: %w", context.Cause(ctx))
	}
}
