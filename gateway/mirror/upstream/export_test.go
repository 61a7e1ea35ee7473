package upstream

import "net/http"

// Use makes a client ask rt in place of the network, for tests with a clock of their own.
func (c *Client) Use(rt http.RoundTripper) { c.http.Transport = rt }
