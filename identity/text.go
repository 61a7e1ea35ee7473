package identity

import (
	"crypto/rand"
	"errors"
	"hash/crc32"
)

// The text of a token is hg_CLASS_ID_SECRETCHECKSUM: 12 characters of public id,
// 43 of secret (256 bits), 6 of CRC-32. The checksum lets scanners tell a token
// from noise, and us refuse noise before any look-up; it proves nothing.
const (
	idLen     = 12
	secretLen = 43
	sumLen    = 6

	idAt     = len("hg_hu_")
	secretAt = idAt + idLen + len("_")
	sumAt    = secretAt + secretLen
	textLen  = sumAt + sumLen
)

const base62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

var errText = errors.New("not the text of a token")

type tokenID [idLen]byte

func (id tokenID) String() string { return string(id[:]) }

// A tokenText is a well-formed token. It holds no part of the text that was
// parsed, so that one can stay on the stack.
type tokenText struct {
	class  Class
	id     tokenID
	secret [secretLen]byte
}

// parseText reads the text of a token, checksum included. It allocates nothing.
func parseText(b []byte) (tokenText, error) {
	if len(b) != textLen || string(b[:3]) != "hg_" || b[idAt-1] != '_' || b[secretAt-1] != '_' {
		return tokenText{}, errText
	}
	var t tokenText
	switch string(b[3:5]) {
	case string(ClassPerson):
		t.class = ClassPerson
	case string(ClassCI):
		t.class = ClassCI
	case string(ClassAgent):
		t.class = ClassAgent
	case string(ClassAdmin):
		t.class = ClassAdmin
	default:
		return tokenText{}, errText
	}
	for i, c := range b[idAt:sumAt] {
		if i != idLen && !isBase62(c) {
			return tokenText{}, errText
		}
	}
	if sum := checksum(b[:sumAt]); string(sum[:]) != string(b[sumAt:]) {
		return tokenText{}, errText
	}
	copy(t.id[:], b[idAt:])
	copy(t.secret[:], b[secretAt:])
	return t, nil
}

func isBase62(c byte) bool {
	return '0' <= c && c <= '9' || 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z'
}

// checksum is CRC-32 (IEEE) in base62. crc32.ChecksumIEEE would do, but it makes
// the credential of each request escape to the heap, which costs more.
func checksum(body []byte) [sumLen]byte {
	var out [sumLen]byte
	n := ^uint32(0)
	for _, c := range body {
		n = crc32.IEEETable[byte(n)^c] ^ n>>8
	}
	n = ^n
	for i := sumLen - 1; i >= 0; i-- {
		out[i] = base62[n%62]
		n /= 62
	}
	return out
}

// newText makes a token of a class out of fresh random bits.
func newText(c Class) string {
	b := make([]byte, 0, textLen)
	b = append(b, "hg_"+string(c)+"_"...)
	b = appendRandom(b, idLen)
	b = append(b, '_')
	b = appendRandom(b, secretLen)
	sum := checksum(b)
	return string(append(b, sum[:]...))
}

// appendRandom adds n characters, each equally likely: bytes that would favour
// the first ones are thrown away.
func appendRandom(b []byte, n int) []byte {
	var pool [64]byte
	for want := len(b) + n; ; {
		_, _ = rand.Read(pool[:]) // it never fails: the program ends instead
		for _, r := range pool {
			if len(b) == want {
				return b
			}
			if r < 62*4 {
				b = append(b, base62[r%62])
			}
		}
	}
}
