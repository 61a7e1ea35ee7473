package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash/crc32"

	"golang.org/x/mod/sumdb/tlog"
)

// A frame is one record on disk, little-endian:
//
//	length u32 of the payload · CRC-32C u32 of all that follows it · mark u8 · seq u64 · append time i64 ns · payload
//
// The payload is the leaf hash of the record before (zeros for the first) and the record's JSON. The leaf hash is
// SHA-256(0x00 ‖ payload), so that one hash makes the chain and the RFC 6962 tree. The CRC finds accidents, the hash
// finds intent.
type frame struct {
	mark    byte
	seq     int64
	time    int64 // ns; serves scanning alone, what is believed is the record's own t
	payload []byte
}

// The mark holds the format's version in its upper three bits, the kind in its lower four, and between them whether
// the record is the first of its write. A damaged frame that has a later write behind it was once acknowledged; one
// that has only the rest of its own write behind it may be what a power cut left.
const (
	markVersion = 1 << 5
	markBatch   = 1 << 4
	markKind    = 1<<4 - 1
)

const (
	frameHead  = 4 + 4 + 1 + 8 + 8
	minPayload = tlog.HashSize + len("{}")
	maxPayload = tlog.HashSize + 2*maxRecord // redaction may add to a record that was just short enough
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errFrame says that bytes are no whole, undamaged frame.
var errFrame = errors.New("no valid frame")

// appendFrame appends a frame around a record's JSON, with room for what is known only when it is written.
func appendFrame(dst []byte, kind Kind, record []byte) []byte {
	var head [frameHead + tlog.HashSize]byte
	binary.LittleEndian.PutUint32(head[0:], uint32(tlog.HashSize+len(record)))
	head[8] = markVersion | kind.number()
	dst = append(dst, head[:]...)
	return append(dst, record...)
}

// stampFrame fills in what appendFrame left open, in place, and returns the leaf hash and the rest of the buffer.
func stampFrame(buf []byte, first bool, seq, time int64, prev tlog.Hash) (leaf tlog.Hash, rest []byte) {
	end := frameHead + int(binary.LittleEndian.Uint32(buf))
	copy(buf[frameHead:], prev[:])
	buf[frameHead-1] = 0 // the leaf's prefix, where the append time goes in a moment: no copy, no allocation
	leaf = sha256.Sum256(buf[frameHead-1 : end])
	if first {
		buf[8] |= markBatch
	}
	binary.LittleEndian.PutUint64(buf[9:], uint64(seq))
	binary.LittleEndian.PutUint64(buf[17:], uint64(time))
	binary.LittleEndian.PutUint32(buf[4:], crc32.Checksum(buf[8:end], castagnoli))
	return leaf, buf[end:]
}

// parseFrame reads the frame at the beginning of b and returns its size. The payload is part of b.
func parseFrame(b []byte) (frame, int, error) {
	if len(b) < frameHead {
		return frame{}, 0, errFrame
	}
	length := int64(binary.LittleEndian.Uint32(b))
	if length < int64(minPayload) || length > maxPayload || length > int64(len(b)-frameHead) {
		return frame{}, 0, errFrame
	}
	end := frameHead + int(length)
	if crc32.Checksum(b[8:end], castagnoli) != binary.LittleEndian.Uint32(b[4:]) || b[8]&^(markBatch|markKind) != markVersion {
		return frame{}, 0, errFrame
	}
	f := frame{
		mark:    b[8],
		seq:     int64(binary.LittleEndian.Uint64(b[9:])),
		time:    int64(binary.LittleEndian.Uint64(b[17:])),
		payload: b[frameHead:end],
	}
	if f.seq < 0 {
		return frame{}, 0, errFrame
	}
	return f, end, nil
}

func (f frame) prev() tlog.Hash { return tlog.Hash(f.payload[:tlog.HashSize]) }

func (f frame) record() []byte { return f.payload[tlog.HashSize:] }

// leaf returns the frame's leaf hash. scratch keeps the copy that puts the prefix before the payload.
func (f frame) leaf(scratch *bytes.Buffer) tlog.Hash {
	scratch.Reset()
	scratch.WriteByte(0)
	scratch.Write(f.payload)
	return sha256.Sum256(scratch.Bytes())
}
