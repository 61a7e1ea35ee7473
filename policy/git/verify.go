package git

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

const maxObject = 256 << 10 // of a commit or tag: nobody's release notes are longer

// Verify checks the signatures that the configuration wants on a fetched candidate, and gives the fingerprint of the
// key, of the tag's where both are signed. Every failure is ErrRefused, but that the signers' files cannot be read.
func (r *Repository) Verify(ctx context.Context, c Commit) (signer string, err error) {
	s, err := r.readSigners()
	if err != nil {
		return "", err
	}
	if r.cfg.Verify != VerifyTag {
		if signer, err = r.verifyObject(ctx, s, "commit", c.ID); err != nil {
			return "", fmt.Errorf("verifying commit %s: %w: %w", c.ID, ErrRefused, err)
		}
	}
	if r.cfg.Verify != VerifyCommit {
		if err = r.namesCommit(ctx, c); err == nil {
			signer, err = r.verifyObject(ctx, s, "tag", c.Object)
		}
		if err != nil {
			return "", fmt.Errorf("verifying tag %s: %w: %w", strings.TrimPrefix(c.Ref, "refs/tags/"), ErrRefused, err)
		}
	}
	return signer, nil
}

// Reverify checks the signature of a commit or tag that was verified before, since the signers may have changed. known
// is false where the repository no longer has it.
func (r *Repository) Reverify(ctx context.Context, c Commit) (known bool, err error) {
	if !r.has(ctx, c.ID) || !r.has(ctx, c.Object) {
		return false, nil
	}
	_, err = r.Verify(ctx, c)
	return true, err
}

// Knows tells whether a fingerprint still belongs to a signer.
func (r *Repository) Knows(fingerprint string) bool {
	s, err := r.readSigners()
	return err == nil && (s.prints[fingerprint] || s.pgp != nil && !strings.HasPrefix(fingerprint, "SHA256:"))
}

// namesCommit holds a tag object to the ref that leads to it and to the commit itself: else the signed tag of one
// release, under another name, would pass for that other release.
func (r *Repository) namesCommit(ctx context.Context, c Commit) error {
	if c.Object == c.ID {
		return errors.New("it is a lightweight tag, which has no signature")
	}
	text, err := r.local(ctx, "", "cat-file", "tag", c.Object)
	if err != nil {
		return err
	}
	head, _, _ := strings.Cut(string(text), "\n\n")
	lines := strings.Split(head, "\n")
	want := []string{"object " + c.ID, "type commit", "tag " + strings.TrimPrefix(c.Ref, "refs/tags/")}
	if len(lines) < len(want) || !slices.Equal(lines[:len(want)], want) {
		return fmt.Errorf("it says %q; want %q", lines[:min(len(want), len(lines))], want)
	}
	return nil
}

// verifyObject lets git check the one signature of an object, and compares the key that git names with the list.
func (r *Repository) verifyObject(ctx context.Context, s *signers, kind, id string) (string, error) {
	object, err := r.local(ctx, "", "cat-file", kind, id)
	if err != nil {
		return "", err
	}
	format, err := signatureFormat(kind, string(object))
	if err != nil {
		return "", err
	}
	if format == "SSH" && len(s.prints) == 0 || format == "PGP" && s.pgp == nil {
		return "", fmt.Errorf("its signature is of format %s, for which no signer is configured", format)
	}
	// --raw is what the checking program itself says, on standard error; git speaks for a good signature by exit code.
	text, err := r.verdict(ctx, "verify-"+kind, "--raw", id)
	if err != nil {
		return "", fmt.Errorf("git does not accept its signature: %w", err)
	}
	if format == "PGP" {
		return pgpSigner(text)
	}
	return s.sshSigner(text)
}

var armors = regexp.MustCompile(`(?m)^ ?-----BEGIN ([A-Z0-9 ]+)-----`)

// signatureFormat finds out of which kind the one signature of an object is, since git goes by the signature that it
// finds: several would be several answers.
func signatureFormat(kind, object string) (string, error) {
	if len(object) > maxObject {
		return "", fmt.Errorf("it has more than %d bytes", maxObject)
	}
	head, body, _ := strings.Cut(object, "\n\n")
	headers := 0
	for line := range strings.Lines(head) {
		if strings.HasPrefix(line, "gpgsig") {
			headers++
		}
	}
	signed := head
	want := 1
	if kind == "tag" {
		signed, want = body, 0
	}
	found := armors.FindAllStringSubmatch(strings.ReplaceAll(signed, "\ngpgsig ", "\n"), -1)
	switch {
	case len(found) == 0:
		return "", errors.New("it is not signed")
	case len(found) > 1 || headers != want:
		return "", errors.New("it has more than one signature")
	}
	switch found[0][1] {
	case "SSH SIGNATURE":
		return "SSH", nil
	case "PGP SIGNATURE", "PGP MESSAGE":
		return "PGP", nil
	}
	return "", fmt.Errorf("its signature is %q; want SSH or PGP", found[0][1])
}

var goodSSH = regexp.MustCompile(`(?m)^Good "git" signature for .* with \S+ key (SHA256:[A-Za-z0-9+/]{43})$`)

// sshSigner reads the key that ssh-keygen accepted, which must be one of the list.
func (s *signers) sshSigner(text string) (string, error) {
	good := goodSSH.FindAllStringSubmatch(text, -1)
	if len(good) != 1 {
		return "", fmt.Errorf("ssh-keygen says %q", text)
	}
	if !s.prints[good[0][1]] {
		return "", fmt.Errorf("key %s is not in allowed_signers_file", good[0][1])
	}
	return good[0][1], nil
}

// pgpSigner reads the fingerprint of the primary key out of gpgv's status lines: one good signature, and nothing else
// said of any.
func pgpSigner(text string) (string, error) {
	signer, good := "", 0
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 2 || words[0] != "[GNUPG:]" {
			continue
		}
		switch words[1] {
		case "GOODSIG":
			good++
		case "VALIDSIG":
			signer = words[len(words)-1]
		case "BADSIG", "ERRSIG", "EXPSIG", "EXPKEYSIG", "REVKEYSIG":
			return "", fmt.Errorf("gpgv says %s", words[1])
		}
	}
	if good != 1 || len(signer) != 40 && len(signer) != 64 {
		return "", fmt.Errorf("gpgv reports %d good signatures", good)
	}
	return signer, nil
}
