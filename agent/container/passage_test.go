package container

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// lane is a passage with a container behind it that sends back what it gets.
type lane struct {
	*fixture
	*doorTest
	lane    *Door // which the passage belongs to
	path    string
	r       *Registry
	made    Made
	reached atomic.Int64
	heads   chan string // what the container is sent first
}

func newLane(t *testing.T) *lane {
	f := newFixture(t)
	f.opts.Networks = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	f.start()
	l := &lane{fixture: f, doorTest: newDoorTest(t, f), path: filepath.Join(f.dir, "pass.sock"), heads: make(chan string, 100)}
	l.r = f.open(ourOrg)
	l.made = create(t, l.r)
	program, err := net.Listen("tcp", "127.0.0.1:0")
	ok(t, err)
	t.Cleanup(func() { _ = program.Close() })
	go l.echo(program) // ended by the listener
	_, err = l.r.Announce(l.made.Container.ID, l.made.Hosting.Token.Reveal(), Announcement{
		Source: netip.MustParseAddr("127.0.0.1"), Ports: map[ServiceName]uint16{"web": uint16(program.Addr().(*net.TCPAddr).Port)},
	})
	ok(t, err)
	f.run()
	l.lane = f.door()
	l.carry()
	return l
}

// carry opens the passage until the test ends, or until the returned function is called.
func (l *lane) carry() (stop func()) {
	l.fixture.t.Helper()
	_ = os.Remove(l.path)
	s, err := net.Listen("unix", l.path)
	ok(l.fixture.t, err)
	c, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- l.lane.Carry(c, s) }() // received by stop
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			l.fixture.t.Error(err)
		}
	}
	l.fixture.t.Cleanup(stop)
	return stop
}

func (l *lane) echo(program net.Listener) {
	for {
		c, err := program.Accept()
		if err != nil {
			return
		}
		go func() { // ended by either side
			defer func() { _ = c.Close() }()
			in := bufio.NewReader(c)
			var head strings.Builder
			for {
				line, err := in.ReadString('\n')
				head.WriteString(line)
				if err != nil {
					return // nobody came
				}
				if line == "\r\n" {
					break
				}
			}
			l.reached.Add(1)
			l.heads <- head.String()
			_, _ = io.WriteString(c, switched)
			_, _ = io.Copy(c, in)
		}()
	}
}

const switched = "HTTP/1.1 101 Switching Protocols\r\nA: b\r\n\r\n"

// head is a request as nginx writes it: for a WebSocket, unless the headers say otherwise.
func (l *lane) head(headers ...string) string {
	return headOf(asking(l.made.Container.ID, "", append([]string{AskUpgrade, "websocket", "Upgrade", "websocket"}, headers...)...))
}

// wire is a connection of nginx to the passage.
type wire struct {
	net.Conn
	in *bufio.Reader
}

// Read implements io.Reader.
func (w *wire) Read(b []byte) (int, error) { return w.in.Read(b) }

// begin comes to the passage as nginx does.
func (l *lane) begin(head string) *wire {
	l.fixture.t.Helper()
	c, err := net.Dial("unix", l.path)
	ok(l.fixture.t, err)
	l.fixture.t.Cleanup(func() { _ = c.Close() })
	ok(l.fixture.t, c.SetDeadline(time.Now().Add(30*time.Second)))
	_, _ = io.WriteString(c, head) // it may be closed before all was said
	return &wire{c, bufio.NewReader(c)}
}

// reaches reports whether the container answers, which says whatever it is sent.
func (w *wire) reaches() bool {
	res, err := http.ReadResponse(w.in, nil)
	return err == nil && res.StatusCode == http.StatusSwitchingProtocols && res.Header.Get("A") == "b" && says(w, "hello")
}

// open is a connection to the container.
func (l *lane) open(headers ...string) net.Conn {
	l.fixture.t.Helper()
	w := l.begin(l.head(headers...))
	if !w.reaches() {
		l.fixture.t.Fatalf("%v does not reach it", headers)
	}
	return w
}

// answered is the status of what the passage answers itself, after which the connection ends.
func (l *lane) answered(w *wire) int {
	l.fixture.t.Helper()
	res, err := http.ReadResponse(w.in, nil)
	ok(l.fixture.t, err)
	_, err = io.Copy(io.Discard, res.Body)
	ok(l.fixture.t, err)
	ended(l.fixture.t, w, "answered")
	return res.StatusCode
}

// says reports whether what is sent comes back.
func says(c net.Conn, text string) bool {
	if _, err := io.WriteString(c, text); err != nil {
		return false
	}
	got := make([]byte, len(text))
	_, err := io.ReadFull(c, got)
	return err == nil && string(got) == text
}

// ended waits until the other side closes, and fails when it says anything before.
func ended(t testing.TB, c net.Conn, what string) {
	t.Helper()
	n, err := c.Read(make([]byte, 1))
	if n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%s: %d bytes, %v", what, n, err)
	}
}

func TestWhatIsOpenEndsWhenItWouldBeRefused(t *testing.T) {
	l := newLane(t)
	c := l.made.Container.ID
	theirs := l.people[ourOrg]
	theirs.bearers["t"] = Bearer{Subject: person("ann")}
	theirs.bearers["signed"] = Bearer{Subject: person("ann"), Until: l.now().Add(time.Hour)}
	theirs.bearers["short"] = Bearer{Subject: person("ann"), Until: l.now().Add(time.Minute)}
	open := l.open
	paul, ann := open("Cookie", l.login(l.r, "paul", c)), open("Cookie", l.login(l.r, "ann", c))
	token, signed, short := open("Authorization", "Bearer t"), open("Authorization", "Bearer signed"), open("Authorization", "Bearer short")
	if n := l.all.Stats().Open; n != 5 {
		t.Fatalf("%d are open", n)
	}
	// Without heartbeats nobody new comes in, and who is in may stay.
	l.forward(45 * time.Second)
	eventually(t, "it is down", func() bool { return state(t, l.r, c) == Down })
	l.all.Reconsider()
	for what, conn := range map[string]net.Conn{"paul": paul, "ann": ann, "token": token, "signed": signed, "short": short} {
		if !says(conn, "still here") {
			t.Errorf("%s was cut off", what)
		}
	}
	for _, step := range []struct {
		what string
		do   func()
		ends net.Conn
		stay []net.Conn
	}{
		{"a removed member", func() { theirs.remove(t, "paul"); l.all.Reconsider() }, paul, []net.Conn{ann, token, signed, short}},
		{"a token of the platform that expires", func() { l.forward(time.Minute) }, short, []net.Conn{ann, token, signed}},
		{"a token that was taken back", func() {
			theirs.mu.Lock()
			delete(theirs.bearers, "t")
			theirs.mu.Unlock()
		}, token, []net.Conn{ann, signed}},
		{"a logout", func() {
			theirs.mu.Lock()
			theirs.ended["session of ann"] = true
			theirs.mu.Unlock()
		}, ann, []net.Conn{signed}},
		{"an organization that has left", func() { ok(t, l.all.Close(ourOrg, 7)) }, signed, nil},
	} {
		step.do()
		ended(t, step.ends, step.what)
		for i, conn := range step.stay {
			if !says(conn, "and here") {
				t.Errorf("%s: number %d was cut off too", step.what, i)
			}
		}
	}
	eventually(t, "nothing is open", func() bool { s := l.all.Stats(); return s.Open == 0 && s.Ended == 5 })
}

func TestADeletedContainerLeavesNothingOpen(t *testing.T) {
	l := newLane(t)
	conn := l.open("Cookie", l.login(l.r, "ann", l.made.Container.ID))
	ok(t, l.r.Delete(ctx, l.made.Container.ID))
	ended(t, conn, "deleted")
}

// Every request is decided upon by the passage itself, and what it refuses it answers and counts.
func TestNothingIsCarriedWithoutADecision(t *testing.T) {
	l := newLane(t)
	c := l.made.Container.ID
	paul, ann := l.login(l.r, "paul", c), l.login(l.r, "ann", c)
	l.open("Cookie", paul)
	l.people[ourOrg].remove(t, "paul")
	before, counted := l.reached.Load(), l.all.Stats().Access
	good := l.head("Cookie", ann)
	for what, tt := range map[string]struct {
		head   string
		status int
	}{
		"removed": {l.head("Cookie", paul), 403}, "nobody": {l.head(), 401}, "a page": {headOf(asking(c, "", "Accept", "text/html")), 303},
		"in clear": {l.head("Cookie", ann, AskScheme, "http"), 403}, "from another page": {l.head("Cookie", ann, "Origin", "https://evil.test"), 403},
		"another organization": {l.head("Cookie", ann, AskOrganization, string(otherOrg)), 404}, "none": {l.head("Cookie", ann, AskOrganization, ""), 404},
		"no name": {l.head("Cookie", ann, AskLabel, ""), 404}, "a service that is down": {l.head("Cookie", ann, AskLabel, label(c, "api")), 401},
		"in the body": {"POST / HTTP/1.1\r\nHost: x\r\n\r\n" + good, 404}, "no end": {strings.TrimSuffix(good, "\r\n"), 0},
		"too large":     {"GET / HTTP/1.1\r\nA: " + strings.Repeat("x", largestHead) + "\r\n" + good, 0},
		"a broken line": {strings.Replace(good, "Host: x", "Host: x\nA: b", 1), 0}, "a line that goes on": {strings.Replace(good, "Host: x", "Host: x\r\n b", 1), 0},
		"a line without a name": {strings.Replace(good, "Host: x", "Host", 1), 0}, "an old protocol": {strings.Replace(good, "1.1", "1.0", 1), 0}, "no request": {"\r\n\r\n", 0},
	} {
		w := l.begin(tt.head)
		if tt.status == 0 {
			if what == "no end" {
				ok(t, w.Conn.(*net.UnixConn).CloseWrite())
			}
			ended(t, w, what)
		} else if got := l.answered(w); got != tt.status {
			t.Errorf("%s: %d, want %d", what, got, tt.status)
		}
	}
	if n := l.reached.Load() - before; n != 0 {
		t.Errorf("%d requests reached the container", n)
	}
	after := l.all.Stats().Access
	for a, want := range map[Answer]uint64{Passed: 0, Anonymous: 3, Refused: 2} {
		if n := after[a] - counted[a]; n != want {
			t.Errorf("%d were counted as %s, want %d", n, a, want)
		}
	}
}

// What opens and then is silent is not cut off by the time limit for a request's head, whichever side is silent.
func TestWhatIsOpenOutlivesTheLimitOfAHead(t *testing.T) {
	l := newLane(t)
	const limit = 200 * time.Millisecond
	begun, news := make(chan struct{}, 100), make(chan string)
	program, err := net.Listen("tcp", "127.0.0.1:0")
	ok(t, err)
	server := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begun <- struct{}{}
		_, _ = io.WriteString(w, "data: "+<-news+"\n\n")
	})}
	go func() { _ = server.Serve(program) }() // ended by Close
	t.Cleanup(func() { close(news); _ = server.Close() })
	stream, err := l.r.Create(ctx, "ann", simple())
	ok(t, err)
	_, err = l.r.Announce(stream.Container.ID, stream.Hosting.Token.Reveal(), Announcement{
		Source: netip.MustParseAddr("127.0.0.1"), Ports: map[ServiceName]uint16{"web": uint16(program.Addr().(*net.TCPAddr).Port)},
	})
	ok(t, err)
	session := l.login(l.r, "paul", l.made.Container.ID)
	head := headOf(asking(stream.Container.ID, "", "Cookie", l.login(l.r, "paul", stream.Container.ID), "Accept", "text/event-stream"))
	l.lane.passage.headLife = limit
	l.carry()
	var socket, events *wire
	// On a busy machine the limit may be over before a head is read.
	eventually(t, "a WebSocket opens", func() bool { socket = l.begin(l.head("Cookie", session)); return socket.reaches() })
	eventually(t, "an event stream opens", func() bool {
		events = l.begin(head)
		select {
		case <-begun:
			return true
		case <-time.After(time.Second):
			return false
		}
	})
	ended(t, l.begin("GET / HTTP/1.1\r\n"), "half a head") // its limit began after theirs
	if !says(socket, "still here") {
		t.Error("the WebSocket was cut off")
	}
	news <- "at last"
	res, err := http.ReadResponse(events.in, nil)
	ok(t, err)
	if line, err := bufio.NewReader(res.Body).ReadString('\n'); line != "data: at last\n" {
		t.Errorf("the event stream was cut off: %q %v", line, err)
	}
}

func TestTheContainerIsSentWhatNginxSent(t *testing.T) {
	l := newLane(t)
	session := l.login(l.r, "paul", l.made.Container.ID)
	for what, lines := range map[string][2]string{
		"first": {"", "A: b\r\n"}, "last": {"a_B: b \r\n", ""}, "long": {"A: " + strings.Repeat("x", 70_000) + "\r\n", "B: " + strings.Repeat("y", 70_000) + "\r\n"},
		"of others": {"Transfer-Encoding: chunked\r\nAccept: x\r\nOrigin: https://" + Hostname(l.r.hostname, l.made.Container.ID, "") + "\r\n", "accept: y\r\n"},
	} {
		c := l.begin("")
		text := "POST /a HTTP/1.1\r\n" + lines[0] + AskOrganization + ": " + string(ourOrg) + "\r\n" + AskLabel + ": " + label(l.made.Container.ID, "") + "\r\n" +
			AskScheme + ": https\r\nx-demiurge-user: mallory\r\nX-FORWARDED-USER: mallory\r\nX-Demiurge-Uri: mallory\r\ncookie: " + session + "; a=b\r\n" + lines[1] + "\r\nbody\r\n\r\n"
		for part := range strings.SplitSeq(text, "\n") { // in pieces
			if part != "" {
				_, err := io.WriteString(c, part+"\n")
				ok(t, err)
			}
		}
		want := "POST /a HTTP/1.1\r\n" + TellUser + ": paul\r\n" + TellUsername + ": the%20user%20paul\r\n" + TellProject + ": one\r\n" +
			TellContainer + ": " + string(l.made.Container.ID) + "\r\n" + TellService + ": web\r\n" + forwardedUser + ": paul\r\n" + forwardedUsername + ": the%20user%20paul\r\nCookie: a=b\r\n" +
			lines[0] + AskOrganization + ": " + string(ourOrg) + "\r\n" + AskScheme + ": https\r\n" + lines[1] + "\r\n"
		if got := <-l.heads; got != want {
			t.Errorf("%s: it is sent %d bytes %.1000q, want %.1000q", what, len(got), got, want)
		}
		res, err := http.ReadResponse(c.in, nil)
		ok(t, err)
		body := make([]byte, len("body\r\n\r\n"))
		if _, err := io.ReadFull(c, body); err != nil || string(body) != "body\r\n\r\n" || res.Header.Get(TellUser) != "paul" {
			t.Errorf("%s: the body is %q: %v", what, body, err)
		}
	}
}

// nginx reads in the answer whom it was for. The container cannot say so, however it writes the name.
func TestTheLogIsToldByThePassageAlone(t *testing.T) {
	const user = TellUser + ": paul\r\n"
	for said, want := range map[string]string{
		"HTTP/1.1 200 OK\r\n\r\nbody\n\nX-Demiurge-User: in the body":                                             "HTTP/1.1 200 OK\r\n" + user + "\r\nbody\n\nX-Demiurge-User: in the body",
		"HTTP/1.1 200 OK\r\nA: b\r\nx_demiurge_USER: ann\r\nX-Demiurge-User : ann\r\nX-Demiurge-Users: x\r\n\r\n": "HTTP/1.1 200 OK\r\n" + user + "A: b\r\nX-Demiurge-Users: x\r\n\r\n",
		"HTTP/1.0 200\nA: b\nX-Demiurge-User: ann\n\nbody":                                                        "HTTP/1.0 200\n" + user + "A: b\n\nbody",
		"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nX-Demiurge-User: ann\r\n\r\n":              "HTTP/1.1 103 Early Hints\r\n" + user + "Link: x\r\n\r\nHTTP/1.1 200 OK\r\n" + user + "\r\n",
		"HTTP/1.1 101 Switching Protocols\r\n\r\nHTTP/1.1 200\r\nX-Demiurge-User: ann\r\n\r\n":                    "HTTP/1.1 101 Switching Protocols\r\n" + user + "\r\nHTTP/1.1 200\r\nX-Demiurge-User: ann\r\n\r\n",
	} {
		for _, size := range []int{1, 7, len(said)} {
			here, there := connected(t)
			a := answer{to: there, user: "paul"}
			for part := range slices.Chunk([]byte(said), size) {
				_, err := a.Write(part)
				ok(t, err)
			}
			ok(t, there.Close())
			if got, err := io.ReadAll(here); err != nil || string(got) != want {
				t.Errorf("%q becomes %q, %v", said, got, err)
			}
			_ = here.Close()
		}
	}
}

func TestALotGoesBothWaysAtOnce(t *testing.T) {
	l := newLane(t)
	c := l.open("Cookie", l.login(l.r, "paul", l.made.Container.ID))
	sent := make([]byte, 20<<20)
	for i := range sent {
		sent[i] = byte(i * i >> 8)
	}
	go func() { _, _ = c.Write(sent) }() // ended by the reader's end
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("what comes back is not what was sent: %v", err)
	}
}

// A container that is not there, or says nothing that can be read, is told from one that refuses.
func TestASilentContainer(t *testing.T) {
	l := newLane(t)
	session := l.login(l.r, "paul", l.made.Container.ID)
	free, err := net.Listen("tcp", "127.0.0.1:0")
	ok(t, err)
	gone := free.Addr().(*net.TCPAddr).Port
	ok(t, free.Close())
	mute, err := net.Listen("tcp", "127.0.0.1:0")
	ok(t, err)
	t.Cleanup(func() { _ = mute.Close() })
	go func() { // ended by the listener
		for _, says := range []string{"", "HTTP/1.1 200 OK\r\nA:", strings.Repeat("x", largestHead+bufferSize)} {
			c, err := mute.Accept()
			if err != nil {
				return
			}
			_, _ = c.Read(make([]byte, 4<<10))
			_, _ = io.WriteString(c, says)
			_ = c.Close()
		}
	}()
	for _, port := range []int{gone, mute.Addr().(*net.TCPAddr).Port} {
		_, err = l.r.Announce(l.made.Container.ID, l.made.Hosting.Token.Reveal(), Announcement{
			Source: netip.MustParseAddr("127.0.0.1"), Ports: map[ServiceName]uint16{"web": uint16(port)},
		})
		ok(t, err)
		for range 3 {
			if status := l.answered(l.begin(l.head("Cookie", session))); status != http.StatusBadGateway {
				t.Errorf("at %d: %d", port, status)
			}
		}
	}
}

// When the agent ends, everything that it carries ends with it; the next one carries on.
func TestTheEndOfThePassage(t *testing.T) {
	l := newLane(t)
	session := l.login(l.r, "paul", l.made.Container.ID)
	stop := l.carry()
	open, half := l.open("Cookie", session), l.begin("GET / HTTP/1.1\r\n")
	stop()
	ended(t, open, "open")
	ended(t, half, "half said")
	eventually(t, "nothing is open", func() bool { return l.all.Stats().Open == 0 })
	l.carry()
	l.open("Cookie", session)
}
