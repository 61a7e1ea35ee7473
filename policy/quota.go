package policy

import (
	"fmt"
	"sync"
	"time"
)

// missesPerMinute is how many paths that nobody with the same rights asked about before a subject may ask about in a
// minute: more than twice what a cold build of 536 modules reads go.mod files of.
const missesPerMinute = 10_000

// A quota counts the evaluations that each subject causes in a minute, so that whoever makes paths up pays with nothing
// but their own requests. Releases need none: they exist.
type quota struct {
	most int

	mu    sync.Mutex // guards all below
	began time.Time
	spent map[[2]string]int // by issuer and id
}

func newQuota(most int) *quota { return &quota{most: most, spent: map[[2]string]int{}} }

// take counts one evaluation, or refuses it with ErrQuota.
func (q *quota) take(s Subject, now time.Time) error {
	if q == nil {
		return nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if now.Sub(q.began) >= time.Minute {
		q.began = now
		clear(q.spent)
	}
	who := [2]string{s.Issuer, s.ID}
	if q.spent[who] >= q.most {
		return fmt.Errorf("%w: more than %d in a minute by %s %s", ErrQuota, q.most, s.Type, s.ID)
	}
	q.spent[who]++
	return nil
}
