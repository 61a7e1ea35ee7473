package audit

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sort"

	"github.com/klauspost/compress/zstd"
)

// A packed segment is a sealed one in blocks of 1,024 records, each a zstd frame (RFC 8878) that can be read alone.
// Behind them, in a skippable frame, so that any zstd tool unpacks the file, stands a table of the blocks:
//
//	packed size u32 · raw size u32 · CRC-32C u32 of the packed bytes, for each block; then
//	records u64 · blocks u32 · CRC-32C u32 of the table so far · magic
//
// What is read from it is the raw segment, byte for byte: frames, chain and tree stay what they were.
const (
	packMagic     = "hgpack1\n"
	packEntry     = 12
	packEnd       = 8 + 4 + 4 + len(packMagic)
	skippable     = 0x184D2A50
	maxBlockBytes = blockOf * (frameHead + maxPayload)
)

// errPack says that a packed segment is not what was written.
var errPack = errors.New("no valid packed segment")

// A packer writes a packed segment.
type packer struct {
	encoder *zstd.Encoder
	out     []byte
	table   []byte
	block   []byte
	inBlock int
	records int64
}

func newPacker() (*packer, error) {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(true))
	if err != nil {
		return nil, fmt.Errorf("preparing compression: %w", err)
	}
	return &packer{encoder: e}, nil
}

// add takes the next frame as it stands in the raw segment.
func (p *packer) add(raw []byte) {
	p.block = append(p.block, raw...)
	p.records++
	if p.inBlock++; p.inBlock == blockOf {
		p.flush()
	}
}

func (p *packer) flush() {
	if p.inBlock == 0 {
		return
	}
	start := len(p.out)
	p.out = p.encoder.EncodeAll(p.block, p.out)
	p.table = binary.LittleEndian.AppendUint32(p.table, uint32(len(p.out)-start))
	p.table = binary.LittleEndian.AppendUint32(p.table, uint32(len(p.block)))
	p.table = binary.LittleEndian.AppendUint32(p.table, crc32.Checksum(p.out[start:], castagnoli))
	p.block, p.inBlock = p.block[:0], 0
}

// finish returns the packed segment.
func (p *packer) finish() []byte {
	p.flush()
	blocks := len(p.table) / packEntry
	table := binary.LittleEndian.AppendUint64(p.table, uint64(p.records))
	table = binary.LittleEndian.AppendUint32(table, uint32(blocks))
	table = binary.LittleEndian.AppendUint32(table, crc32.Checksum(table, castagnoli))
	table = append(table, packMagic...)
	p.out = binary.LittleEndian.AppendUint32(p.out, skippable)
	p.out = binary.LittleEndian.AppendUint32(p.out, uint32(len(table)))
	return append(p.out, table...)
}

// A packed reads a packed segment as if it were the raw one. It is not safe for use by several goroutines.
type packed struct {
	file    io.ReaderAt
	layout  layout
	first   int64
	records int64
	blocks  []packedBlock
	decoder *zstd.Decoder
	recent  [2]unpacked // a scanner's window may lie across two blocks
	src     []byte
}

type packedBlock struct {
	off, raw          int64 // where it begins, in the file and in the raw segment
	size, rawSize     int64
	sum               uint32
	firstSeq, lastSeq int64
}

type unpacked struct {
	block int // plus 1
	data  []byte
}

// openPacked reads the table of a packed segment of size bytes.
func openPacked(file io.ReaderAt, size int64, l layout, first int64) (*packed, error) {
	p := &packed{file: file, layout: l, first: first}
	damage := func(what string) error {
		return &DamageError{Code: ExitAltered, Epoch: l.epoch, Seq: first, SeqTo: first, Detail: "the packed segment that begins with it is not what was written: " + what}
	}
	end := make([]byte, packEnd)
	if _, err := file.ReadAt(end, max(size-int64(packEnd), 0)); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, damage("too short")
		}
		return nil, fmt.Errorf("opening packed segment: %w", err)
	}
	n := int64(binary.LittleEndian.Uint32(end[8:]))
	length := n*packEntry + int64(packEnd)
	if string(end[16:]) != packMagic || length > size-8 {
		return nil, damage("its end")
	}
	table := make([]byte, 8+length)
	if _, err := file.ReadAt(table, size-length-8); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("opening packed segment: %w", err)
	}
	if binary.LittleEndian.Uint32(table) != skippable || int64(binary.LittleEndian.Uint32(table[4:])) != length {
		return nil, damage("its table")
	}
	if err := p.parse(table[8:], size-length-8); err != nil {
		return nil, damage(err.Error())
	}
	var err error
	if p.decoder, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxBlockBytes)); err != nil {
		return nil, fmt.Errorf("preparing decompression: %w", err)
	}
	return p, nil
}

// parse reads the table; the blocks before it take size bytes.
func (p *packed) parse(table []byte, size int64) error {
	sum := len(table) - len(packMagic) - 4
	if crc32.Checksum(table[:sum], castagnoli) != binary.LittleEndian.Uint32(table[sum:]) {
		return fmt.Errorf("its table's sum: %w", errPack)
	}
	p.records = int64(binary.LittleEndian.Uint64(table[sum-12:]))
	var at packedBlock
	at.firstSeq = p.first
	for e := table[:sum-12]; len(e) > 0; e = e[packEntry:] {
		at.size, at.rawSize = int64(binary.LittleEndian.Uint32(e)), int64(binary.LittleEndian.Uint32(e[4:]))
		at.sum, at.lastSeq = binary.LittleEndian.Uint32(e[8:]), min(at.firstSeq+blockOf, p.first+p.records)-1
		if at.rawSize > maxBlockBytes || at.lastSeq < at.firstSeq {
			return fmt.Errorf("its table: %w", errPack)
		}
		p.blocks = append(p.blocks, at)
		at.off, at.raw, at.firstSeq = at.off+at.size, at.raw+at.rawSize, at.lastSeq+1
	}
	if at.off != size || at.firstSeq != p.first+p.records {
		return fmt.Errorf("its table: %w", errPack)
	}
	return nil
}

// ReadAt reads from the raw segment. Bytes that cannot be what was written are a *DamageError that names the records of
// their block.
func (p *packed) ReadAt(b []byte, off int64) (int, error) {
	i := sort.Search(len(p.blocks), func(i int) bool { return p.blocks[i].raw+p.blocks[i].rawSize > off })
	n := 0
	for ; n < len(b) && i < len(p.blocks); i++ {
		data, err := p.block(i)
		if err != nil {
			return n, err
		}
		n += copy(b[n:], data[off+int64(n)-p.blocks[i].raw:])
	}
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// block unpacks a block, or finds it among the last two.
func (p *packed) block(i int) ([]byte, error) {
	for _, u := range p.recent {
		if u.block == i+1 {
			return u.data, nil
		}
	}
	at := p.blocks[i]
	if int64(cap(p.src)) < at.size {
		p.src = make([]byte, at.size)
	}
	src := p.src[:at.size]
	if _, err := p.file.ReadAt(src, at.off); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("reading packed segment: %w", err)
	}
	old := p.recent[0]
	p.recent[0] = p.recent[1]
	var data []byte
	var err error
	if crc32.Checksum(src, castagnoli) != at.sum {
		err = errPack
	} else {
		data, err = p.decoder.DecodeAll(src, old.data[:0])
	}
	if err != nil || int64(len(data)) != at.rawSize {
		p.recent[1] = unpacked{}
		return nil, &DamageError{
			Code: ExitAltered, Epoch: p.layout.epoch, Seq: at.firstSeq, SeqTo: at.lastSeq,
			Detail: "the block of the packed segment that holds them is not what was written",
		}
	}
	p.recent[1] = unpacked{block: i + 1, data: data}
	return data, nil
}

func (p *packed) close() { p.decoder.Close() }

// pack returns a raw segment packed, after it was unpacked again and compared.
func pack(raw io.ReaderAt, l layout, first int64, stop <-chan struct{}) ([]byte, error) {
	p, err := newPacker()
	if err != nil {
		return nil, err
	}
	defer func() { _ = p.encoder.Close() }() // it has no writer that could fail
	s := newScanner(raw, 0)
	for {
		_, err := s.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("packing segment %d at %d: %w", first, s.off, err)
		}
		p.add(s.raw)
		if p.records%blockOf == 0 && stopped(stop) {
			return nil, errClosed
		}
	}
	out := p.finish()
	return out, comparePacked(raw, out, l, first)
}

func stopped(stop <-chan struct{}) bool {
	select {
	case <-stop:
		return true
	default:
		return false
	}
}

// comparePacked holds a packed segment against the raw one. Only after that may the raw one go.
func comparePacked(raw io.ReaderAt, out []byte, l layout, first int64) error {
	p, err := openPacked(bytes.NewReader(out), int64(len(out)), l, first)
	if err != nil {
		return err
	}
	defer p.close()
	a, b := make([]byte, scanWindow), make([]byte, scanWindow)
	for off := int64(0); ; off += scanWindow {
		n, err := p.ReadAt(a, off)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		m, rerr := raw.ReadAt(b, off)
		if rerr != nil && !errors.Is(rerr, io.EOF) {
			return fmt.Errorf("comparing packed segment: %w", rerr)
		}
		if m != n || !bytes.Equal(a[:n], b[:m]) {
			return fmt.Errorf("comparing packed segment %d with the raw one: they differ", first)
		}
		if n < len(a) {
			return nil
		}
	}
}
