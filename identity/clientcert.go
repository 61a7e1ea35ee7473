package identity

import (
	"crypto/x509"
	"encoding/base64"
	"net/http"
	"strings"
)

// forwarded reads the one Client-Cert header of a balancer: a byte sequence of RFC 9651 that holds the whole
// certificate (RFC 9440, section 2.2). A hash or a subject proves nothing, and is no such thing.
func forwarded(h http.Header) ([]*x509.Certificate, *Error) {
	values := h["Client-Cert"]
	if len(values) == 0 {
		return nil, refuse(DeviceRequired, "the balancer forwarded no Client-Cert")
	}
	if len(values) > 1 {
		return nil, refuse(CertInvalid, "%d Client-Cert headers; want one", len(values))
	}
	cert, err := parseClientCert(values[0])
	if err != nil {
		return nil, refuse(CertInvalid, "reading Client-Cert: %w", err)
	}
	return []*x509.Certificate{cert}, nil
}

func parseClientCert(value string) (*x509.Certificate, error) {
	value = strings.Trim(value, " ")
	if len(value) > maxChainBytes || len(value) < 2 || value[0] != ':' || value[len(value)-1] != ':' {
		return nil, errText
	}
	der, err := base64.StdEncoding.Strict().DecodeString(value[1 : len(value)-1])
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// ForwardedIdentity tells whether a header's name is one under which proxies hand on who a client is, in any spelling:
// case, dash or underscore. Only a pinned balancer's Client-Cert is one of ours.
func ForwardedIdentity(name string) bool {
	if name == "" || strings.IndexByte("cCxXsStT", name[0]) < 0 {
		return false
	}
	name = strings.ToLower(strings.ReplaceAll(strings.TrimSpace(name), "_", "-"))
	for _, prefix := range []string{
		"client-cert", "x-client-cert", "x-forwarded-client-cert", "x-forwarded-tls-client", "x-ssl-", "ssl-client", "ssl-cert", "x-tls-client",
		"tls-client", "x-amzn-mtls-", "x-arr-clientcert", "x-client-verify", "x-client-subject", "x-client-dn", "x-clientcert", "x-spiffe-",
	} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}
