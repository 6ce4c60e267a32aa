package state

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// A saved state is a sequence of records: one byte of kind, a length (unsigned varint), and that many bytes
// of JSON. kindFeed and the kinds of the tables are stored: never reorder or reuse one.
const (
	kindEnd   byte = 0 // ends the sequence; no length follows
	kindAbout byte = 1
	kindFeed  byte = 100
	kindEvent byte = 101
)

// maxRecord is more than any record has.
const maxRecord = 64 << 20

// feedRecord is what a snapshot keeps of the feed beside its events.
type feedRecord struct {
	Dropped EventID `json:"dropped"`
}

// Save writes everything, in an order that depends on the contents only.
func (c Checkpoint) Save(w io.Writer) error {
	out := bufio.NewWriterSize(w, 1<<16)
	var head []byte
	put := func(kind byte, record any) error {
		raw, err := json.Marshal(record)
		if err != nil {
			return fmt.Errorf("cannot save a record of kind %d: %w", kind, err)
		}
		head = binary.AppendUvarint(append(head[:0], kind), uint64(len(raw)))
		if _, err := out.Write(head); err != nil {
			return err
		}
		_, err = out.Write(raw)
		return err
	}
	if err := put(kindAbout, c.View.about); err != nil {
		return err
	}
	for _, t := range tables() {
		if err := t.save(c.View, func(record any) error { return put(t.kind, record) }); err != nil {
			return err
		}
	}
	if err := put(kindFeed, feedRecord{c.events.dropped}); err != nil {
		return err
	}
	for i := range c.events.length {
		event := c.events.at(i)
		if err := put(kindEvent, &event); err != nil {
			return err
		}
	}
	if err := out.WriteByte(kindEnd); err != nil {
		return err
	}
	return out.Flush()
}

// Load reads what Save wrote into a new store.
func Load(r io.Reader) (*Store, error) {
	in, ok := r.(byteReader)
	if !ok {
		in = bufio.NewReaderSize(r, 1<<16)
	}
	byKind := map[byte]table{}
	for _, t := range tables() {
		byKind[t.kind] = t
	}
	s := New()
	l := loader{txn: s.Begin(), byKind: byKind, strings: interner{}}
	var raw bytes.Buffer
	for {
		kind, err := in.ReadByte()
		if err != nil {
			l.txn.Abort()
			return nil, fmt.Errorf("cannot read the saved state, it ends too early: %w", err)
		}
		if kind == kindEnd {
			break
		}
		if err = readRecord(in, &raw); err == nil {
			err = l.take(kind, raw.Bytes())
		}
		if err != nil {
			l.txn.Abort()
			return nil, err
		}
	}
	l.txn.Commit()
	s.current.Load().feed.restore(l.feed)
	return s, nil
}

// readRecord fills the buffer with a record. It grows with what is read, not with what a length says.
func readRecord(in byteReader, buffer *bytes.Buffer) error {
	n, err := binary.ReadUvarint(in)
	if err != nil {
		return fmt.Errorf("cannot read a saved record's length: %w", err)
	}
	if n > maxRecord {
		return fmt.Errorf("cannot read a saved record of %d bytes, more than %d: the snapshot is damaged", n, maxRecord)
	}
	buffer.Reset()
	if _, err := io.CopyN(buffer, in, int64(n)); err != nil {
		return fmt.Errorf("cannot read a saved record of %d bytes: %w", n, err)
	}
	return nil
}

type byteReader interface {
	io.Reader
	io.ByteReader
}

type loader struct {
	txn     *Txn
	byKind  map[byte]table
	strings interner
	feed    feedCut
}

func (l *loader) take(kind byte, raw []byte) error {
	switch kind {
	case kindAbout:
		if err := json.Unmarshal(raw, &l.txn.about); err != nil {
			return fmt.Errorf("cannot read the saved index: %w", err)
		}
		return nil
	case kindFeed:
		var f feedRecord
		if err := json.Unmarshal(raw, &f); err != nil {
			return fmt.Errorf("cannot read the saved feed: %w", err)
		}
		l.feed.dropped, l.feed.last = f.Dropped, f.Dropped
		return nil
	case kindEvent:
		var e Event
		if err := json.Unmarshal(raw, &e); err != nil {
			return fmt.Errorf("cannot read a saved event: %w", err)
		}
		intern(l.strings, &e.Type)
		intern(l.strings, &e.Actor)
		intern(l.strings, &e.Source)
		intern(l.strings, &e.Reason)
		intern(l.strings, &e.Code)
		intern(l.strings, &e.Host)
		intern(l.strings, &e.Pool)
		intern(l.strings, &e.Before)
		intern(l.strings, &e.After)
		l.feed.push(&e)
		return nil
	}
	t, ok := l.byKind[kind]
	if !ok {
		return errors.New("cannot read a saved record of unknown kind " + fmt.Sprint(kind) +
			": a newer version wrote it, install that version")
	}
	return t.restore(l.txn, raw, l.strings)
}

func (f *feed) restore(saved feedCut) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cutLocked = saved
}
