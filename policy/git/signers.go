package git

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
)

// signers are the keys whose signatures count, as the files hold them at one moment.
type signers struct {
	ssh     []byte
	revoked []byte
	pgp     []byte          // binary keyring
	prints  map[string]bool // fingerprints of the SSH keys, as SHA256:…
}

// readSigners reads the configured files, and puts what it read where git looks: so the list that is compared and the
// list that git goes by are one.
func (r *Repository) readSigners() (*signers, error) {
	s := &signers{prints: map[string]bool{}}
	var err error
	if r.cfg.AllowedSigners != "" {
		if s.ssh, err = readSmall(r.cfg.AllowedSigners); err == nil {
			s.prints, err = fingerprints(s.ssh)
		}
		if err != nil {
			return nil, fmt.Errorf("reading allowed_signers_file: %w", err)
		}
	}
	if r.cfg.RevokedSigners != "" {
		if s.revoked, err = readSmall(r.cfg.RevokedSigners); err != nil {
			return nil, fmt.Errorf("reading revoked_signers_file: %w", err)
		}
	}
	if r.cfg.PGPKeys != "" {
		if s.pgp, err = readSmall(r.cfg.PGPKeys); err == nil {
			s.pgp, err = dearmor(s.pgp)
		}
		if err != nil {
			return nil, fmt.Errorf("reading pgp_keys_file: %w", err)
		}
	}
	for name, text := range map[string][]byte{"allowed_signers": s.ssh, "revoked_signers": s.revoked, "keyring": s.pgp} {
		if err := os.WriteFile(r.file("home/"+name), text, 0o600); err != nil {
			return nil, fmt.Errorf("placing the signers: %w", err)
		}
	}
	return s, nil
}

// Signers is a digest of whose signatures count now: when it changes, what was verified before is verified again.
func (r *Repository) Signers() (string, error) {
	s, err := r.readSigners()
	if err != nil {
		return "", err
	}
	hash := sha256.New()
	for _, part := range [][]byte{s.ssh, s.revoked, s.pgp} {
		sum := sha256.Sum256(part)
		hash.Write(sum[:])
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}

// fingerprints are those of the keys in an allowed signers file. Each line is principals, options, type, key, comment.
func fingerprints(text []byte) (map[string]bool, error) {
	prints := map[string]bool{}
	number := 0
	for line := range strings.Lines(string(text)) {
		number++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		words := splitQuoted(line)
		blob, options := []byte(nil), words[min(1, len(words)):]
		for i := 1; i+1 < len(words) && blob == nil; i++ {
			if isKeyType(words[i]) {
				blob, _ = base64.StdEncoding.DecodeString(words[i+1])
				options = words[1:i]
			}
		}
		if len(blob) == 0 {
			return nil, fmt.Errorf("line %d: holds no key; want PRINCIPAL [OPTIONS] TYPE KEY", number)
		}
		for _, option := range options {
			if strings.HasPrefix(strings.ToLower(option), "cert-authority") || strings.Contains(strings.ToLower(option), ",cert-authority") {
				return nil, fmt.Errorf("line %d: names a certificate authority; want the signers' own keys", number)
			}
		}
		sum := sha256.Sum256(blob)
		prints["SHA256:"+base64.RawStdEncoding.EncodeToString(sum[:])] = true
	}
	if len(prints) == 0 {
		return nil, errors.New("holds no key")
	}
	return prints, nil
}

func isKeyType(word string) bool {
	for _, prefix := range []string{"ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-"} {
		if strings.HasPrefix(word, prefix) {
			return true
		}
	}
	return false
}

// splitQuoted splits at blanks outside double quotes.
func splitQuoted(line string) []string {
	quoted := false
	return strings.FieldsFunc(line, func(r rune) bool {
		if r == '"' {
			quoted = !quoted
		}
		return !quoted && (r == ' ' || r == '\t')
	})
}

// dearmor gives the binary keys of one or more armored blocks (RFC 9580, 6.2); what is not armored is returned as it is.
// The checksum at the end of a block guards against typing mistakes alone and is optional: a damaged key verifies nothing.
func dearmor(text []byte) ([]byte, error) {
	const begin, end = "-----BEGIN PGP PUBLIC KEY BLOCK-----", "-----END PGP PUBLIC KEY BLOCK-----"
	if !bytes.Contains(text, []byte("-----BEGIN ")) {
		if len(text) == 0 || text[0]&0x80 == 0 {
			return nil, errors.New("holds no PGP public key")
		}
		return text, nil
	}
	var keys []byte
	rest := strings.ReplaceAll(string(text), "\r", "")
	for {
		_, after, found := strings.Cut(rest, begin+"\n")
		if !found {
			break
		}
		block, next, closed := strings.Cut(after, end)
		_, body, headed := strings.Cut("\n"+block, "\n\n")
		if !closed || !headed {
			return nil, errors.New("holds an armored block without an end or without an empty line")
		}
		body, _, _ = strings.Cut(body, "\n=")
		key, err := base64.StdEncoding.DecodeString(strings.ReplaceAll(body, "\n", ""))
		if err != nil {
			return nil, fmt.Errorf("holds a damaged armored block: %w", err)
		}
		keys, rest = append(keys, key...), next
	}
	if len(keys) == 0 || strings.Contains(rest, "PRIVATE KEY") {
		return nil, errors.New("holds no PGP public key")
	}
	return keys, nil
}
