package mirror

import "github.com/headgate/headgate/gateway/mirror/store"

// roots are the locations of the two stores.
func (c Config) roots() (public, private string) {
	if c.StorePrivate != "" {
		return store.Join(c.Store, "public"), c.StorePrivate
	}
	return store.Join(c.Store, "public"), store.Join(c.Store, "private")
}

// validateStores wants private files apart from public ones.
func (c Config) validateStores(bad func(string, ...any)) {
	for _, s := range []struct{ key, location string }{{"store", c.Store}, {"store_private", c.StorePrivate}} {
		if err := store.CheckLocation(s.location); err != nil {
			bad("%s: %w", s.key, err)
		}
	}
	if public, private := c.roots(); c.StorePrivate != "" && (c.StorePrivate == c.Store || private == public) {
		bad("store_private: is store again; want a folder or bucket of its own, or nothing for \"private\" below store")
	}
}
