package check

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
)

// Recorder writes a run to a file while it goes on, so that nothing that ends the run or its check loses what
// was seen. Each line is a part of the run as JSON; of two lines about one operation the later one counts.
type Recorder struct {
	mu   sync.Mutex
	file *os.File
	err  error // the first one
}

// line is one line of the file: one of its fields is set.
type line struct {
	Begin     *Run       `json:"begin,omitempty"` // what is known when it begins
	Operation *Operation `json:"operation,omitempty"`
	Sample    *Snapshot  `json:"sample,omitempty"`
	Fault     *Fault     `json:"fault,omitempty"`
	End       *Run       `json:"end,omitempty"` // what was looked at when it had ended
}

// Record begins the file of a run.
func Record(path string, begin Run) (*Recorder, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot record the run: %w", err)
	}
	r := &Recorder{file: file}
	r.put(line{Begin: &begin})
	return r, nil
}

func (r *Recorder) put(l line) {
	text, err := json.Marshal(l)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil {
		_, err = r.file.Write(append(text, '\n'))
	}
	if r.err == nil {
		r.err = err
	}
}

// Operation records an operation: when it is called, and again when it has returned.
func (r *Recorder) Operation(op Operation) { r.put(line{Operation: &op}) }

// Sample records a look.
func (r *Recorder) Sample(s Snapshot) { r.put(line{Sample: &s}) }

// Fault records a fault that begins now.
func (r *Recorder) Fault(f Fault) { r.put(line{Fault: &f}) }

// End records what was looked at when all was quiet again.
func (r *Recorder) End(end Run) {
	end.Before, end.Operations, end.Samples, end.Faults = Snapshot{}, nil, nil, nil
	r.put(line{End: &end})
}

// Close ends the file. It tells whether all of the run is in it.
func (r *Recorder) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return errors.Join(r.err, r.file.Close())
}

// Read reads the file of a run. An operation without its return is one without an answer, and a last line that
// was cut off is none.
func Read(path string) (Run, error) {
	file, err := os.Open(path)
	if err != nil {
		return Run{}, fmt.Errorf("cannot read the run: %w", err)
	}
	defer file.Close()
	var run Run
	place := map[int]int{}
	lines := bufio.NewReader(file)
	for n := 1; ; n++ {
		text, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return run, nil
		}
		var l line
		if err == nil {
			err = json.Unmarshal(text, &l)
		}
		if err != nil {
			return run, fmt.Errorf("cannot read line %d of %s: %w", n, path, err)
		}
		run.add(l, place)
	}
}

// add adds a line. place is where the operation of each id stands.
func (r *Run) add(l line, place map[int]int) {
	switch {
	case l.Begin != nil:
		*r = *l.Begin
	case l.Operation != nil:
		if at, ok := place[l.Operation.ID]; ok {
			r.Operations[at] = *l.Operation
			return
		}
		place[l.Operation.ID] = len(r.Operations)
		r.Operations = append(r.Operations, *l.Operation)
	case l.Sample != nil:
		r.Samples = append(r.Samples, *l.Sample)
	case l.Fault != nil:
		r.Faults = append(r.Faults, *l.Fault)
	case l.End != nil:
		end := *l.End
		end.Before, end.Operations, end.Samples, end.Faults = r.Before, r.Operations, r.Samples, r.Faults
		*r = end
	}
}
