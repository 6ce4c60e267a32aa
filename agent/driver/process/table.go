package process

import "sync"

// table shares the reading of all processes among those who want it at the same time: when hundreds of gateways
// are recycled at once, each would read all of /proc twice otherwise, which is dear and holds up whatever else
// the host does.
type table struct {
	read    func() []member
	running chan struct{} // capacity 1: holds a value during a reading

	mu   sync.Mutex // guards next
	next *reading   // collects those who ask while another reading is on its way
}

func newTable(read func() []member) *table {
	return &table{read: read, running: make(chan struct{}, 1)}
}

type reading struct {
	done chan struct{}
	all  []member // written before done is closed, and not changed after
}

// look returns all processes as a reading that began after the call found them.
func (t *table) look() []member {
	t.mu.Lock()
	r, leads := t.next, false
	if r == nil {
		r, leads = &reading{done: make(chan struct{})}, true
		t.next = r
	}
	t.mu.Unlock()
	if !leads {
		<-r.done
		return r.all
	}
	t.running <- struct{}{}
	t.mu.Lock()
	t.next = nil // from here on others belong to the following reading
	t.mu.Unlock()
	r.all = t.read()
	<-t.running
	close(r.done)
	return r.all
}
