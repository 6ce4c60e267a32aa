package oauth

// index finds tokens by digest. It is cut into shards because a Go map never gives memory back: a shard
// that has lost most of its tokens is copied into a small map, and copying one shard is short enough to be
// done while the store is locked.
type index struct {
	shards [256]shard
	size   int
}

type shard struct {
	tokens map[digest]*token
	peak   int // most tokens that the present map has held
}

func (x *index) get(d digest) *token { return x.shards[d[0]].tokens[d] }

func (x *index) put(t *token) {
	s := &x.shards[t.digest[0]]
	if s.tokens == nil {
		s.tokens = make(map[digest]*token)
	}
	s.tokens[t.digest] = t
	s.peak = max(s.peak, len(s.tokens))
	x.size++
}

func (x *index) remove(t *token) {
	s := &x.shards[t.digest[0]]
	delete(s.tokens, t.digest)
	x.size--
	switch left := len(s.tokens); {
	case left == 0:
		*s = shard{}
	case s.peak >= 32 && left <= s.peak/4:
		small := make(map[digest]*token, left)
		for d, t := range s.tokens {
			small[d] = t
		}
		*s = shard{tokens: small, peak: left}
	}
}

// dueList is a heap of all tokens by expiry with four children a node; the time stands beside the token so
// that comparing does not touch it. It lies in pieces: a slice of a million would be copied whole, while the
// store is locked, whenever it grows or gives memory back.
type dueList struct {
	pieces []*duePiece
	size   int
}

const dueInPiece = 256

type duePiece [dueInPiece]due

type due struct {
	at    int64 // Unix milliseconds
	token *token
}

const fanOut = 4

func (h *dueList) node(i int) *due { return &h.pieces[i/dueInPiece][i%dueInPiece] }

// next is when the first token is due.
func (h *dueList) next() (int64, bool) {
	if h.size == 0 {
		return 0, false
	}
	return h.node(0).at, true
}

func (h *dueList) push(t *token) {
	if h.size == len(h.pieces)*dueInPiece {
		h.pieces = append(h.pieces, new(duePiece))
	}
	h.size++
	h.up(h.size-1, due{t.expires, t})
}

// remove takes a token out, wherever it stands.
func (h *dueList) remove(t *token) {
	h.size--
	at, last := int(t.at), h.node(h.size)
	moved := *last
	*last = due{}
	if at != h.size {
		h.down(at, moved)
		h.up(int(moved.token.at), moved)
	}
	switch spare := len(h.pieces)*dueInPiece - h.size; {
	case h.size == 0:
		h.pieces = nil
	case spare >= 2*dueInPiece: // one piece stays, so that one token does not come and go with it
		h.pieces[len(h.pieces)-1] = nil
		h.pieces = h.pieces[:len(h.pieces)-1]
	}
}

func (h *dueList) set(i int, d due) {
	*h.node(i) = d
	d.token.at = int32(i)
}

// up puts what belongs at i or above it to its place.
func (h *dueList) up(i int, moving due) {
	for i > 0 {
		parent := (i - 1) / fanOut
		above := *h.node(parent)
		if above.at <= moving.at {
			break
		}
		h.set(i, above)
		i = parent
	}
	h.set(i, moving)
}

// down puts what belongs at i or below it to its place.
func (h *dueList) down(i int, moving due) {
	for {
		first := fanOut*i + 1
		if first >= h.size {
			break
		}
		least, soonest := first, *h.node(first)
		for c := first + 1; c < min(first+fanOut, h.size); c++ {
			if d := *h.node(c); d.at < soonest.at {
				least, soonest = c, d
			}
		}
		if moving.at <= soonest.at {
			break
		}
		h.set(i, soonest)
		i = least
	}
	h.set(i, moving)
}
