package identity

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// newSeal derives a key from a pepper, so that what it seals opens nothing for whoever has the database alone.
func newSeal(pepper []byte) cipher.AEAD {
	key, err := hkdf.Key(sha256.New, pepper, nil, "headgate sealed secrets", 32)
	if err != nil {
		panic("identity: deriving a key: " + err.Error()) // 32 bytes are never too many
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		panic("identity: making a cipher: " + err.Error()) // it is a key of AES-256
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic("identity: making a cipher: " + err.Error()) // AES has the block size of GCM
	}
	return aead
}

// sealed encrypts a secret that we have to use again. place says where it will stand, so that it opens nowhere else.
func (p *peppers) sealed(secret []byte, place string) string {
	text := p.current.seal.Seal(nil, nil, secret, []byte(place)) //nolint:gosec // this AEAD makes its own random nonce
	return strconv.Itoa(p.current.version) + "." + base64.RawURLEncoding.EncodeToString(text)
}

var errSeal = errors.New("it was not sealed here")

// unsealed is the opposite of sealed.
func (p *peppers) unsealed(text, place string) ([]byte, error) {
	version, coded, _ := strings.Cut(text, ".")
	n, err := strconv.Atoi(version)
	if err != nil || p.byVersion[n] == nil {
		return nil, fmt.Errorf("opening a sealed secret: %w", errSeal)
	}
	data, err := base64.RawURLEncoding.Strict().DecodeString(coded)
	if err != nil {
		return nil, fmt.Errorf("opening a sealed secret: %w", errSeal)
	}
	secret, err := p.byVersion[n].seal.Open(nil, nil, data, []byte(place))
	if err != nil {
		return nil, fmt.Errorf("opening a sealed secret: %w", errSeal)
	}
	return secret, nil
}

// randomSecret is 256 random bits as text.
func randomSecret() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // it never fails: the program ends instead
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// readSecret reads a file that holds one secret in one line.
func readSecret(file string) (string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("reading client_secret_file: %w", err)
	}
	secret := strings.TrimSpace(string(data))
	if secret == "" || strings.ContainsAny(secret, "\r\n") {
		return "", fmt.Errorf("reading client_secret_file %s: want one line with the secret", file)
	}
	return secret, nil
}
