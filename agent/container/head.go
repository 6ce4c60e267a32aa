package container

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
)

// largestHead bounds the head of a request and of an answer: four times what nginx takes from a client, with what it
// adds.
const largestHead = 256 << 10

// request is one request as nginx brings it to the passage: what the question is put with, and the lines that go to
// the container as they are.
type request struct {
	line   []byte // GET / HTTP/1.1
	method string
	asked  http.Header
	lines  []byte // of the head
	body   []byte // as far as it came with the head
}

// readRequest reads the head of a request.
func readRequest(from io.Reader) (request, error) {
	buf := make([]byte, 0, 4<<10)
	for at := 0; ; {
		if len(buf) == cap(buf) {
			if len(buf) >= largestHead {
				return request{}, errors.New("its head is too large")
			}
			buf = append(make([]byte, 0, 4*cap(buf)), buf...)
		}
		n, err := from.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if end := bytes.Index(buf[at:], []byte("\r\n\r\n")); end >= 0 {
			end += at
			r, err := parseRequest(buf[:end+2])
			r.body = buf[end+4:]
			return r, err
		}
		if err != nil {
			return request{}, err
		}
		at = max(0, len(buf)-3)
	}
}

// parseRequest takes a head apart, which ends after its last line. It refuses whatever nginx does not write, so that
// the container cannot read anything else in it than is read here.
func parseRequest(head []byte) (request, error) {
	r := request{asked: http.Header{}, lines: make([]byte, 0, len(head))}
	for len(head) > 0 {
		line, rest, _ := bytes.Cut(head, []byte("\r\n"))
		head = rest
		if bytes.ContainsAny(line, "\r\n\x00") {
			return r, errors.New("a line of its head is broken")
		}
		if r.line == nil {
			method, uri, ok := strings.Cut(string(line), " ")
			uri, is := strings.CutSuffix(uri, " HTTP/1.1")
			if !ok || !is || method == "" {
				return r, errors.New("it does not begin as requests do")
			}
			r.line, r.method = line, method
			r.asked.Set(AskMethod, method)
			r.asked.Set(AskURI, uri)
			continue
		}
		name, value, ok := bytes.Cut(line, []byte(":"))
		if !ok || len(name) == 0 || bytes.ContainsAny(name, " \t") {
			return r, errors.New("a line of its head has no name")
		}
		key := http.CanonicalHeaderKey(string(name))
		use := uses[key]
		if use&asks != 0 {
			r.asked[key] = append(r.asked[key], string(bytes.TrimSpace(value)))
		}
		if use&ours == 0 {
			r.lines = append(append(r.lines, line...), "\r\n"...)
		}
	}
	if r.line == nil {
		return r, errors.New("its head is empty")
	}
	return r, nil
}

// The uses of a header in a request that nginx brings. Those without any go to the container as they are.
const (
	asks = 1 << iota // the question is put with it
	ours             // what the container gets under this name is the passage's to say
)

var uses = map[string]int{
	AskOrganization: asks, AskScheme: asks, AskLabel: asks | ours, AskUpgrade: asks | ours, AskMethod: ours, AskURI: ours,
	"Cookie": asks | ours, "Authorization": asks | ours, "Accept": asks, "Origin": asks, "Sec-Fetch-Site": asks, "Sec-Fetch-Mode": asks,
	TellUser: ours, TellUsername: ours, TellProject: ours, TellContainer: ours, TellService: ours,
	forwardedUser: ours, forwardedUsername: ours,
}

// as is the request as the container is sent it: in the name of who makes it.
func (r *request) as(t told) []byte {
	out := make([]byte, 0, len(r.line)+len(r.lines)+len(r.body)+512)
	out = append(append(out, r.line...), "\r\n"...)
	for _, h := range [...][2]string{
		{TellUser, t.user},
		{TellUsername, t.username},
		{TellProject, t.project},
		{TellContainer, t.container},
		{TellService, t.service},
		{forwardedUser, t.user},
		{forwardedUsername, t.username},
		{"Cookie", t.cookie},
		{"Authorization", t.authorization},
	} {
		out = appendHeader(out, h[0], h[1])
	}
	out = append(append(out, r.lines...), "\r\n"...)
	return append(out, r.body...)
}

// appendHeader adds a header, unless it is empty. No value becomes two lines.
func appendHeader(to []byte, name, value string) []byte {
	if value == "" {
		return to
	}
	return append(append(append(append(to, name...), ": "...), oneLine.Replace(value)...), "\r\n"...)
}

var oneLine = strings.NewReplacer("\r", " ", "\n", " ", "\x00", " ")

// answer brings what a container answers to nginx. It says in the head whom it was for, which nginx keeps in its log
// and shows nobody; what the container says under that name goes nowhere. The rest is not looked at.
type answer struct {
	to   net.Conn
	user string
	head []byte // as far as it has come
	past bool   // the head is through
}

// Write implements io.Writer.
func (a *answer) Write(b []byte) (int, error) {
	if a.past {
		return a.to.Write(b)
	}
	a.head = append(a.head, b...)
	var out []byte
	for !a.past {
		end := headEnd(a.head)
		if end < 0 {
			if len(a.head) > largestHead {
				return 0, errors.New("the head of its answer is too large")
			}
			break
		}
		out = append(out, a.signed(a.head[:end])...)
		a.past = !informs(a.head)
		a.head = a.head[end:]
	}
	if a.past {
		out = append(out, a.head...)
		a.head = nil
	}
	if len(out) > 0 {
		if _, err := a.to.Write(out); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}

// signed is a head with who the answer is for.
func (a *answer) signed(head []byte) []byte {
	line := bytes.IndexByte(head, '\n') + 1
	out := make([]byte, 0, len(head)+128)
	out = appendHeader(append(out, head[:line]...), TellUser, a.user)
	for line := range bytes.Lines(head[line:]) {
		name, _, _ := bytes.Cut(line, []byte(":"))
		if !strings.EqualFold(strings.ReplaceAll(string(bytes.TrimSpace(name)), "_", "-"), TellUser) {
			out = append(out, line...)
		}
	}
	return out
}

// headEnd is where a head ends that a container wrote, which may leave the CRs out, as nginx does not mind; below
// zero: not yet.
func headEnd(b []byte) int {
	for at := 0; ; {
		n := bytes.IndexByte(b[at:], '\n')
		if n < 0 {
			return -1
		}
		at += n + 1
		switch rest := b[at:]; {
		case bytes.HasPrefix(rest, []byte("\n")):
			return at + 1
		case bytes.HasPrefix(rest, []byte("\r\n")):
			return at + 2
		}
	}
}

// informs reports whether another head follows this one: 1xx, but for the change to another protocol.
func informs(head []byte) bool {
	_, status, _ := bytes.Cut(head, []byte(" "))
	return bytes.HasPrefix(status, []byte("1")) && !bytes.HasPrefix(status, []byte("101"))
}
