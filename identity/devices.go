package identity

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// reloadEvery is how often files of authorities and revocation lists are looked at.
const reloadEvery = 30 * time.Second

// devices is all that is known of machines. A request takes one deviceView and judges by it alone.
type devices struct {
	cfg     Devices
	log     *slog.Logger
	metrics *deviceMetrics
	signer  *signer // nil: nothing is signed here
	feeds   []*feed // the inventory first, if there is one

	view atomic.Pointer[deviceView]

	mu       sync.Mutex // one change of the view at a time; guards what follows
	pools    map[string]*poolFile
	lists    map[string]*crlFile
	degraded map[string]string // what is not as configured, by its name
}

// A deviceView is everything that a device is judged by, at one moment. It is never changed.
type deviceView struct {
	trust     *trust
	inventory *feed // nil: none is configured
	feeds     []*feed
	local     map[string]LocalDevice
	stopped   map[string]string // SPKI of a blocked or deleted device → its id
	enrols    bool              // devices are enrolled here
}

// A poolFile is a pool with what its files held.
type poolFile struct {
	pool   *pool
	digest [sha256.Size]byte
}

// A crlFile is the last good content of one file of lists.
type crlFile struct {
	lists  []*crl
	digest [sha256.Size]byte
}

func openDevices(ctx context.Context, cfg Devices, o Options) (*devices, error) {
	d := &devices{cfg: cfg, log: o.Logger, pools: map[string]*poolFile{}, lists: map[string]*crlFile{}, degraded: map[string]string{}}
	var err error
	if d.metrics, err = newDeviceMetrics(o.Registerer, cfg); err != nil {
		return nil, err
	}
	if d.signer, err = loadSigner(cfg.Enrolment); err != nil {
		return nil, err
	}
	view := &deviceView{enrols: d.signer != nil}
	for _, f := range append([]Feed{cfg.Inventory}, cfg.Posture...) {
		if !f.on() {
			continue
		}
		made, err := newFeed(f)
		if err != nil {
			return nil, err
		}
		d.feeds = append(d.feeds, made)
		if f.Name == inventoryFeed {
			view.inventory = made
		}
	}
	view.feeds = d.feeds
	d.view.Store(view)
	if err := d.loadPools(); err != nil {
		return nil, err
	}
	d.reload(ctx)
	for _, f := range d.feeds {
		if f.client == nil {
			d.refresh(ctx, f) // a URL may be away: whoever waits for it serves nobody
		}
	}
	return d, nil
}

// run reads everything again until ctx ends.
func (d *devices) run(ctx context.Context) {
	var group sync.WaitGroup
	for _, f := range d.feeds {
		group.Go(func() {
			if f.client != nil {
				d.refresh(ctx, f)
			}
			every(ctx, f.cfg.Interval, func() { d.refresh(ctx, f) })
		})
	}
	every(ctx, reloadEvery, func() { d.reload(ctx) })
	group.Wait()
}

func every(ctx context.Context, interval time.Duration, do func()) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			do()
		}
	}
}

// loadPools reads the authorities at the start. One that cannot be read then is fatal.
func (d *devices) loadPools() error {
	for _, cfg := range d.cfg.Pools {
		p, data, err := readPool(cfg)
		if err != nil {
			return err
		}
		d.pools[cfg.Issuer] = &poolFile{p, sha256.Sum256(data)}
		d.metrics.authorityEnds.WithLabelValues(cfg.Issuer).Set(float64(p.notAfter.Unix()))
	}
	return nil
}

// reload looks at the files of authorities and lists. A bad one leaves its last good content in force.
func (d *devices) reload(ctx context.Context) {
	d.mu.Lock()
	defer d.mu.Unlock()
	changed := d.view.Load().trust == nil
	for _, cfg := range d.cfg.Pools {
		p, data, err := readPool(cfg)
		d.note(ctx, "pool:"+cfg.Issuer, err)
		if digest := sha256.Sum256(data); err == nil && digest != d.pools[cfg.Issuer].digest {
			d.pools[cfg.Issuer], changed = &poolFile{p, digest}, true
			d.metrics.authorityEnds.WithLabelValues(cfg.Issuer).Set(float64(p.notAfter.Unix()))
			d.log.LogAttrs(ctx, slog.LevelInfo, "authorities of devices reloaded", slog.String("issuer", cfg.Issuer))
		}
	}
	for n, name := range d.cfg.CRL {
		fresh, err := d.reloadList(name)
		d.note(ctx, fmt.Sprintf("crl:%d", n), err)
		changed = changed || fresh
	}
	if changed {
		next := *d.view.Load()
		next.trust = d.assemble()
		d.view.Store(&next)
	}
	d.measure()
}

func (d *devices) reloadList(name string) (changed bool, err error) {
	data, err := readFile(name, maxCRLFile)
	if err != nil {
		return false, fmt.Errorf("reading revocation list: %w", err)
	}
	digest := sha256.Sum256(data)
	old := d.lists[name]
	if old != nil && old.digest == digest {
		return false, nil
	}
	lists, err := parseCRLs(data)
	if err != nil {
		return false, fmt.Errorf("reading revocation list %s: %w", name, err)
	}
	if old != nil && backwards(old.lists, lists) {
		return false, fmt.Errorf("reading revocation list %s: it is older than the one in force", name)
	}
	d.lists[name] = &crlFile{lists, digest}
	return true, nil
}

// backwards tells whether a list went back to an earlier one of the same authority: who can do that can pardon.
func backwards(old, next []*crl) bool {
	for _, a := range old {
		for _, b := range next {
			if string(a.list.RawIssuer) == string(b.list.RawIssuer) && string(a.list.AuthorityKeyId) == string(b.list.AuthorityKeyId) && a.newer(b) {
				return true
			}
		}
	}
	return false
}

func (d *devices) assemble() *trust {
	t := &trust{lists: map[string][]*crl{}}
	for _, cfg := range d.cfg.Pools {
		t.pools = append(t.pools, d.pools[cfg.Issuer].pool)
	}
	for _, name := range d.cfg.CRL {
		if f := d.lists[name]; f != nil {
			for _, c := range f.lists {
				t.lists[string(c.list.RawIssuer)] = append(t.lists[string(c.list.RawIssuer)], c)
			}
		}
	}
	return t
}

func (d *devices) refresh(ctx context.Context, f *feed) {
	changed, err := f.refresh(ctx, time.Now())
	if ctx.Err() != nil {
		return
	}
	if changed {
		d.log.LogAttrs(ctx, slog.LevelInfo, "devices imported", slog.String("feed", f.cfg.Name), slog.Int("devices", len(f.good.Load().rows)),
			slog.Int("refused", f.good.Load().refused))
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.note(ctx, "feed:"+f.cfg.Name, err)
	d.measure()
}

// RefreshDevices looks at the files of authorities and revocation lists and at all feeds now, not when it is time.
func (s *Service) RefreshDevices(ctx context.Context) {
	if s.devices == nil {
		return
	}
	s.devices.reload(ctx)
	for _, f := range s.devices.feeds {
		s.devices.refresh(ctx, f)
	}
}

// note raises or ends an alarm. Each is said once, when it begins and when it ends. Who calls it holds mu.
func (d *devices) note(ctx context.Context, what string, err error) {
	before, was := d.degraded[what]
	kind, _, _ := strings.Cut(what, ":")
	switch {
	case err != nil:
		d.degraded[what] = err.Error()
		if before != err.Error() {
			d.log.LogAttrs(ctx, slog.LevelError, "devices are judged by older data", slog.String("what", what), slog.Any("err", err))
		}
		d.metrics.failures.WithLabelValues(kind).Inc()
	case was:
		delete(d.degraded, what)
		d.log.LogAttrs(ctx, slog.LevelInfo, "devices are judged by new data again", slog.String("what", what))
	}
	d.metrics.degraded.Set(float64(len(d.degraded)))
}

// learn puts another state of devices in force, of those that are named.
func (d *devices) learn(changed []LocalDevice) {
	if len(changed) == 0 {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	next := *d.view.Load()
	next.local = make(map[string]LocalDevice, len(next.local)+len(changed))
	maps.Copy(next.local, d.view.Load().local)
	for _, l := range changed {
		next.local[l.ID] = l
		if l.State == deviceForgotten {
			delete(next.local, l.ID)
		}
	}
	next.stopped = stoppedKeys(next.local)
	d.view.Store(&next)
}

func stoppedKeys(local map[string]LocalDevice) map[string]string {
	keys := map[string]string{}
	for id, l := range local {
		if l.State != DeviceEnrolled && l.SPKI != "" {
			keys[l.SPKI] = id
			for _, f := range l.Former {
				keys[f.SPKI] = id
			}
		}
	}
	return keys
}

// learnDevices reads what was changed of devices behind a place of the clock, on any node.
func (s *Service) learnDevices(ctx context.Context, behind int64) error {
	if s.devices == nil {
		return nil
	}
	changed, err := s.store.readDevices(ctx, behind)
	if err == nil {
		s.devices.learn(changed)
	}
	return err
}

// A DeviceRecord is one device as an administrator sees it: what is kept here, and what the inventory says.
type DeviceRecord struct {
	LocalDevice

	Source  string          `json:"source"` // here, inventory
	Managed bool            `json:"managed,omitempty"`
	Facts   map[string]Fact `json:"facts,omitempty"`
}

// DeviceList gives all devices, or those of one owner or in one state, by id.
func (s *Service) DeviceList(owner, state string) []DeviceRecord {
	if s.devices == nil {
		return nil
	}
	view, now := s.devices.view.Load(), time.Now()
	ids := slices.Collect(maps.Keys(view.local))
	if c := view.inventory.current(now); c != nil {
		for id := range c.rows {
			if _, both := view.local[id]; !both {
				ids = append(ids, id)
			}
		}
	}
	slices.Sort(ids)
	list := []DeviceRecord{}
	for _, id := range ids {
		r, _ := view.record(id, now)
		if owner != "" && r.Owner != owner || state != "" && r.State != state {
			continue
		}
		list = append(list, r)
	}
	return list
}

// Device gives one device; one that is not known is fs.ErrNotExist.
func (s *Service) Device(id string) (DeviceRecord, error) {
	if s.devices != nil {
		if r, ok := s.devices.view.Load().record(id, time.Now()); ok {
			return r, nil
		}
	}
	return DeviceRecord{}, fmt.Errorf("looking up device %q: %w", id, fs.ErrNotExist)
}

func (v *deviceView) record(id string, now time.Time) (DeviceRecord, bool) {
	local, here := v.local[id]
	r := DeviceRecord{LocalDevice: local, Source: "here", Facts: v.facts(id, now)}
	row, listed := deviceRow{}, false
	if c := v.inventory.current(now); c != nil {
		row, listed = c.rows[id]
	}
	if !listed {
		return r, here
	}
	r.ID, r.Source, r.Managed, r.Platform = id, inventoryFeed, row.managed, row.platform
	r.Owner, r.OwnerIssuer, r.Shared = row.owner, row.ownerIssuer, row.shared
	r.Serial, r.SPKI = cmp.Or(row.serial, local.Serial), cmp.Or(row.spki, local.SPKI)
	if !here || local.State == DeviceEnrolled {
		r.State = row.state
	}
	return r, true
}

// BlockDevice refuses a device from the next request on, and its key under any other name. A device that nobody knows
// yet can be blocked too. Errors are *Error: RequestInvalid, StateDown.
func (s *Service) BlockDevice(ctx context.Context, id, note string) (LocalDevice, error) {
	return s.stopDevice(ctx, id, DeviceBlocked, note)
}

// DeleteDevice takes a device out of what was enrolled here. It cannot enrol itself again until UnblockDevice.
func (s *Service) DeleteDevice(ctx context.Context, id string) (LocalDevice, error) {
	return s.stopDevice(ctx, id, DeviceDeleted, "")
}

var errNoDevices = errors.New("devices are not configured: set identity.devices")

// CheckDevice tells whether a device of this id can be changed here. Errors are *Error RequestInvalid.
func (s *Service) CheckDevice(id string) error {
	if s.devices == nil {
		return refuse(RequestInvalid, "changing device: %w", errNoDevices)
	}
	if !deviceName.MatchString(id) {
		return refuse(RequestInvalid, "changing device %q: want letters, digits, dot, dash and underscore, at most 128", id)
	}
	return nil
}

func (s *Service) stopDevice(ctx context.Context, id, state, note string) (LocalDevice, error) {
	if err := s.CheckDevice(id); err != nil {
		return LocalDevice{}, err
	}
	view, now := s.devices.view.Load(), time.Now().UTC().Truncate(time.Second)
	l := view.local[id]
	if l.Created.IsZero() {
		l.Created = now
	}
	if r, ok := view.record(id, now); ok {
		l.SPKI = r.SPKI // its key is refused under any other id, too
	}
	l.ID, l.State, l.Note, l.Changed = id, state, cmp.Or(note, l.Note), now
	return s.putDevice(ctx, l)
}

func (s *Service) putDevice(ctx context.Context, l LocalDevice) (LocalDevice, error) {
	if err := s.store.putDevice(ctx, l); err != nil {
		return LocalDevice{}, &Error{Code: StateDown, Err: err}
	}
	s.devices.learn([]LocalDevice{l})
	return l, nil
}

// UnblockDevice ends a block. A device that was deleted, or that an inventory enrols, is forgotten here, so that it can
// be enrolled anew. One that is neither is fs.ErrNotExist.
func (s *Service) UnblockDevice(ctx context.Context, id string) (LocalDevice, error) {
	if err := s.CheckDevice(id); err != nil {
		return LocalDevice{}, err
	}
	l, ok := s.devices.view.Load().local[id]
	if !ok || l.State == DeviceEnrolled {
		return LocalDevice{}, fmt.Errorf("unblocking device %q: %w", id, fs.ErrNotExist)
	}
	keep := l.State == DeviceBlocked && l.Serial != "" // it was enrolled here
	l.State, l.Changed = deviceForgotten, time.Now().UTC().Truncate(time.Second)
	if keep {
		l.State = DeviceEnrolled
	}
	return s.putDevice(ctx, l)
}

// DeviceStatus names what devices are not judged by as configured: a file or feed whose last good content is in force.
func (s *Service) DeviceStatus() map[string]string {
	if s.devices == nil {
		return nil
	}
	s.devices.mu.Lock()
	defer s.devices.mu.Unlock()
	return maps.Clone(s.devices.degraded)
}

// DeviceConfig is the configuration of devices with its defaults, for whoever listens.
func (s *Service) DeviceConfig() Devices { return s.cfg.Devices }
