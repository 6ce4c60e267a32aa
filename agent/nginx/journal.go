package nginx

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/demiurge-platform/demiurge/shared/fsx"
)

// journal is the durable plan: what was proven live and what is being tried. It knows how to go back.
type journal struct {
	Format      int    `json:"format"`
	Live        uint64 `json:"live"`         // the last proven generation
	Candidate   uint64 `json:"candidate"`    // what the pointer may name and nginx may run; 0: nothing is being tried
	RollingBack bool   `json:"rolling_back"` // the candidate is the last live content under a new number
	Last        uint64 `json:"last"`         // the highest number ever tried: none is used twice
	// Rejected are digests that nginx refused as a whole, with its words. They are not tried again.
	Rejected map[string]string `json:"rejected,omitempty"`
}

const journalFormat = 1

// maxRejected bounds the journal; which of the older refusals is forgotten only costs another test.
const maxRejected = 32

// encode writes the journal with its own checksum in front: a flipped bit must not become a decision.
func (j journal) encode() []byte {
	j.Format = journalFormat
	body, err := json.Marshal(j)
	if err != nil {
		panic(fmt.Sprintf("cannot encode the journal: %v", err)) // plain fields only
	}
	sum := sha256.Sum256(body)
	return fmt.Appendf(nil, "%s\n%s\n", hex.EncodeToString(sum[:]), body)
}

// decodeJournal refuses everything that encode did not write.
func decodeJournal(b []byte) (journal, error) {
	sum, body, ok := strings.Cut(strings.TrimSuffix(string(b), "\n"), "\n")
	want := sha256.Sum256([]byte(body))
	if !ok || sum != hex.EncodeToString(want[:]) {
		return journal{}, errors.New("cannot read the nginx journal: its checksum is wrong")
	}
	var j journal
	d := json.NewDecoder(strings.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(&j); err != nil {
		return journal{}, fmt.Errorf("cannot read the nginx journal: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return journal{}, errors.New("cannot read the nginx journal: there is text after its end")
	}
	if j.Format != journalFormat {
		return journal{}, fmt.Errorf("cannot read the nginx journal: it has format %d and this program knows %d", j.Format, journalFormat)
	}
	if j.Last < j.Live || j.Last < j.Candidate || j.Candidate != 0 && j.Candidate <= j.Live {
		return journal{}, errors.New("cannot read the nginx journal: its numbers contradict each other")
	}
	if !bytes.Equal(j.encode(), b) {
		return journal{}, errors.New("cannot read the nginx journal: it is not in the form that this program writes")
	}
	return j, nil
}

// reject remembers a refused digest.
func (j *journal) reject(digest, message string) {
	next := map[string]string{digest: message}
	for d, m := range j.Rejected {
		if len(next) < maxRejected {
			next[d] = m
		}
	}
	j.Rejected = next
}

// loadJournal reads the journal. found is false when there is none yet.
func loadJournal(f fsx.FS, l layout) (j journal, found bool, err error) {
	b, err := f.ReadFile("nginx.journal.read", l.journal())
	if errors.Is(err, fs.ErrNotExist) {
		return journal{}, false, nil
	}
	if err != nil {
		return journal{}, false, fmt.Errorf("cannot read the nginx journal %s: %w", l.journal(), err)
	}
	j, err = decodeJournal(b)
	return j, err == nil, err
}

// readJournalFile reads the journal where there is no file system to go through.
func readJournalFile(l layout) (journal, error) {
	b, err := os.ReadFile(l.journal())
	if err != nil {
		return journal{}, fmt.Errorf("cannot read the nginx journal: %w", err)
	}
	return decodeJournal(b)
}

func saveJournal(f fsx.FS, l layout, step string, j journal) error {
	if err := fsx.WriteAtomic(f, "nginx.journal."+step, l.journal(), j.encode(), 0o600); err != nil {
		return fmt.Errorf("cannot write the nginx journal %s: %w", l.journal(), err)
	}
	return nil
}
