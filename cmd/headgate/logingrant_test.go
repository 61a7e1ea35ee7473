package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A tokenEndpoint answers one poll after the other; an empty answer is a network that fails.
type tokenEndpoint struct {
	answers []string
	polls   []time.Duration // since the start
	began   time.Time
}

func (e *tokenEndpoint) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	e.polls = append(e.polls, time.Since(e.began))
	form, err := url.ParseQuery(string(body))
	if err != nil || form.Get("device_code") != "the-code" || form.Get("client_id") != "headgate-cli" {
		return nil, errors.New("a poll of another form: " + string(body))
	}
	answer := e.answers[min(len(e.polls), len(e.answers))-1]
	if answer == "" {
		return nil, errors.New("network is unreachable")
	}
	status, text := http.StatusBadRequest, `{"error":"`+answer+`","error_description":"why \u001b[31mnot"}`
	if answer == "granted" {
		status, text = http.StatusOK, `{"access_token":"hg_hu_x","expires_in":60}`
	}
	return &http.Response{StatusCode: status, Status: http.StatusText(status), Body: io.NopCloser(strings.NewReader(text)), Request: r}, nil
}

// The terminal's side of RFC 8628, section 3.5, on a clock of its own.
func TestGrantPolls(t *testing.T) {
	for name, tt := range map[string]struct {
		answers []string
		polls   []time.Duration // in seconds
		want    string          // of the error
	}{
		"allowed":                    {[]string{"authorization_pending", "granted"}, []time.Duration{5, 10}, ""},
		"slow_down adds five":        {[]string{"slow_down", "slow_down", "granted"}, []time.Duration{5, 15, 30}, ""},
		"the network fails for once": {[]string{"", "", "granted"}, []time.Duration{5, 15, 35}, ""},
		"the gateway is in trouble":  {[]string{"temporarily_unavailable", "granted"}, []time.Duration{5, 15}, ""},
		"denied":                     {[]string{"authorization_pending", "access_denied"}, []time.Duration{5, 10}, "the gateway refused: why [31mnot; nothing was changed"},
		"over":                       {[]string{"expired_token"}, []time.Duration{5}, "nothing was changed"},
		"nobody comes":               {[]string{"authorization_pending"}, []time.Duration{5, 10, 15, 20, 25, 30, 35, 40}, "nobody allowed it in time"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := &tokenEndpoint{answers: tt.answers, began: time.Now()}
				ctx, cancel := context.WithTimeoutCause(t.Context(), 42*time.Second, errors.New("nobody allowed it in time"))
				defer cancel()
				token, err := deviceGrant{by: &http.Client{Transport: e}, poll: "https://go.example/-/oauth/token"}.wait(ctx, "the-code", 5*time.Second)
				if tt.want == "" && (err != nil || token != "hg_hu_x") || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
					t.Errorf("wait() = %q, %v, want %q", token, err, tt.want)
				}
				var polls []time.Duration
				for _, at := range e.polls {
					polls = append(polls, at/time.Second)
				}
				if len(polls) != len(tt.polls) {
					t.Fatalf("polled at %v s, want %v", polls, tt.polls)
				}
				for i := range polls {
					if polls[i] != tt.polls[i] {
						t.Errorf("polled at %v s, want %v", polls, tt.polls)
					}
				}
			})
		})
	}
}

// What a gateway says of itself is believed as far as it stays at home.
func TestMetadataOfAnotherPlace(t *testing.T) {
	const own = `"issuer":"https://go.example/-","device_authorization_endpoint":"https://go.example/-/oauth/device_authorization","token_endpoint":"https://go.example/-/oauth/token"`
	for name, tt := range map[string]struct{ text, want string }{
		"its own":                    {own, ""},
		"devices at another port":    {own + `,"mtls_endpoint_aliases":{"token_endpoint":"https://go.example:8444/-/oauth/token"}`, ""},
		"another issuer":             {strings.Replace(own, `"https://go.example/-"`, `"https://evil.example/-"`, 1), `names itself "https://evil.example"`},
		"codes at another host":      {strings.Replace(own, `"https://go.example/-/oauth/device`, `"https://go.example.evil/-/oauth/device`, 1), "names itself"},
		"tokens at another host":     {strings.Replace(own, `"https://go.example/-/oauth/token`, `"https://evil.example/-/oauth/token`, 1), "names itself"},
		"tokens over http":           {strings.Replace(own, `"https://go.example/-/oauth/token`, `"http://go.example/-/oauth/token`, 1), "names itself"},
		"devices at another host":    {own + `,"mtls_endpoint_aliases":{"token_endpoint":"https://evil.example/-/oauth/token"}`, "sends devices to another host"},
		"devices over http":          {own + `,"mtls_endpoint_aliases":{"token_endpoint":"http://go.example/-/oauth/token"}`, "sends devices to another host"},
		"escape sequences in a name": {strings.Replace(own, `"https://go.example/-"`, `"\u001b[2Jx"`, 1), `names itself "[2Jx"`},
	} {
		t.Run(name, func(t *testing.T) {
			c := &http.Client{Transport: said(`{` + tt.text + `}`)}
			_, err := readMetadata(t.Context(), c, "https://go.example")
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("readMetadata: %v, want %q", err, tt.want)
			}
		})
	}
}

// said answers every request with one text.
type said string

func (s said) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: http.StatusOK, Status: "200 OK", Body: io.NopCloser(strings.NewReader(string(s))), Request: r}, nil
}
