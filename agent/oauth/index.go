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

// dueList is a heap of all tokens by expiry with four children a node: a node's children lie in one cache
// line, and the time stands beside the token so that comparing does not touch it.
type dueList []due

type due struct {
	at    int64 // Unix milliseconds
	token *token
}

const fanOut = 4

// next is when the first token is due.
func (h dueList) next() (int64, bool) {
	if len(h) == 0 {
		return 0, false
	}
	return h[0].at, true
}

func (h *dueList) push(t *token) {
	*h = append(*h, due{t.expires, t})
	t.at = int32(len(*h) - 1)
	h.up(len(*h) - 1)
}

// remove takes a token out, wherever it stands.
func (h *dueList) remove(t *token) {
	at, last := int(t.at), len(*h)-1
	moved := (*h)[last]
	(*h)[last] = due{}
	*h = (*h)[:last]
	if at != last {
		h.set(at, moved)
		h.down(at)
		h.up(int(moved.token.at))
	}
	if c := cap(*h); c >= 1024 && last <= c/4 {
		*h = append(make([]due, 0, c/2), *h...)
	}
}

func (h dueList) set(i int, d due) {
	h[i] = d
	d.token.at = int32(i)
}

func (h dueList) up(i int) {
	moving := h[i]
	for i > 0 {
		parent := (i - 1) / fanOut
		if h[parent].at <= moving.at {
			break
		}
		h.set(i, h[parent])
		i = parent
	}
	h.set(i, moving)
}

func (h dueList) down(i int) {
	moving := h[i]
	for {
		first := fanOut*i + 1
		if first >= len(h) {
			break
		}
		least := first
		for c := first + 1; c < min(first+fanOut, len(h)); c++ {
			if h[c].at < h[least].at {
				least = c
			}
		}
		if moving.at <= h[least].at {
			break
		}
		h.set(i, h[least])
		i = least
	}
	h.set(i, moving)
}
