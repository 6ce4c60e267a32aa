package container

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// lane is a passage with a container behind it that sends back what it gets.
type lane struct {
	*fixture
	*doorTest
	r       *Registry
	made    Made
	reached atomic.Int64
	heads   chan string // what the container is sent first
}

func newLane(t *testing.T) *lane {
	f := newFixture(t)
	f.opts.Networks = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	f.start()
	l := &lane{fixture: f, doorTest: newDoorTest(t, f), heads: make(chan string, 100)}
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
	l.carry()
	return l
}

// carry opens the passage until the test ends, or until the returned function is called.
func (l *lane) carry() (stop func()) {
	l.fixture.t.Helper()
	_ = os.Remove(l.fixture.opts.Passage)
	s, err := net.Listen("unix", l.fixture.opts.Passage)
	ok(l.fixture.t, err)
	c, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- l.all.Carry(c, s) }() // received by stop
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
			_, _ = io.Copy(c, in)
		}()
	}
}

// pass is what the door says to a request with these headers.
func (l *lane) pass(headers ...string) string {
	l.fixture.t.Helper()
	key := l.request(PathCheck, l.made.Container.ID, "", append(headers, "Accept", "text/event-stream")...).Header().Get(TellPass)
	if key == "" {
		l.fixture.t.Fatalf("no pass for %v", headers)
	}
	return key
}

// bring comes to the passage as nginx does.
func (l *lane) bring(head string) net.Conn {
	l.fixture.t.Helper()
	c, err := net.Dial("unix", l.fixture.opts.Passage)
	ok(l.fixture.t, err)
	l.fixture.t.Cleanup(func() { _ = c.Close() })
	ok(l.fixture.t, c.SetDeadline(time.Now().Add(30*time.Second)))
	_, err = io.WriteString(c, head)
	ok(l.fixture.t, err)
	return c
}

func request(key string) string {
	return "GET / HTTP/1.1\r\nHost: x\r\n" + TellPass + ": " + key + "\r\nUpgrade: websocket\r\n\r\n"
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
	open := func(headers ...string) net.Conn {
		conn := l.bring(request(l.pass(headers...)))
		if !says(conn, "hello") {
			t.Fatalf("%v does not reach it", headers)
		}
		return conn
	}
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
	conn := l.bring(request(l.pass("Cookie", l.login(l.r, "ann", l.made.Container.ID))))
	if !says(conn, "hello") {
		t.Fatal("it is not reached")
	}
	ok(t, l.r.Delete(ctx, l.made.Container.ID))
	ended(t, conn, "deleted")
}

func TestAPassIsGoodOnceForWhatWasLetIn(t *testing.T) {
	l := newLane(t)
	session := l.login(l.r, "paul", l.made.Container.ID)
	used := l.pass("Cookie", session)
	if !says(l.bring(request(used)), "hello") {
		t.Fatal("it is not reached")
	}
	expired := l.pass("Cookie", session)
	l.forward(passLife)
	removed := l.pass("Cookie", session)
	l.people[ourOrg].remove(t, "paul")
	before := l.reached.Load()
	for what, head := range map[string]string{
		"used": request(used), "expired": request(expired), "of somebody removed meanwhile": request(removed), "invented": request("ABC"), "empty": request(""),
		"none": "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "in the body": "POST / HTTP/1.1\r\nHost: x\r\n\r\n" + passLine + used + "\r\n\r\n",
		"too large": "GET / HTTP/1.1\r\nA: " + strings.Repeat("x", largestHead) + "\r\n" + TellPass + ": x\r\n",
	} {
		c, err := net.Dial("unix", l.fixture.opts.Passage)
		ok(t, err)
		ok(t, c.SetDeadline(time.Now().Add(30*time.Second)))
		_, _ = io.WriteString(c, head) // it may be closed before all was said
		ended(t, c, what)
		_ = c.Close()
	}
	if n := l.reached.Load() - before; n != 0 {
		t.Errorf("%d requests reached the container", n)
	}
}

func TestTheContainerIsSentWhatNginxSent(t *testing.T) {
	l := newLane(t)
	session := l.login(l.r, "paul", l.made.Container.ID)
	for what, lines := range map[string][2]string{
		"first": {"", "A: b\r\n"}, "last": {"A: b\r\n", ""}, "long": {"A: " + strings.Repeat("x", 70_000) + "\r\n", "B: " + strings.Repeat("y", 70_000) + "\r\n"},
	} {
		key := l.pass("Cookie", session)
		c := l.bring("")
		text := "POST /a HTTP/1.1\r\n" + lines[0] + TellPass + ": " + key + "\r\n" + lines[1] + "\r\nbody\r\n\r\n"
		for part := range strings.SplitSeq(text, "\n") { // in pieces
			if part != "" {
				_, err := io.WriteString(c, part+"\n")
				ok(t, err)
			}
		}
		if got, want := <-l.heads, "POST /a HTTP/1.1\r\n"+lines[0]+lines[1]+"\r\n"; got != want {
			t.Errorf("%s: it is sent %d bytes %.200q", what, len(got), got)
		}
		body := make([]byte, len("body\r\n\r\n"))
		if _, err := io.ReadFull(c, body); err != nil || string(body) != "body\r\n\r\n" {
			t.Errorf("%s: the body is %q: %v", what, body, err)
		}
	}
}

func TestALotGoesBothWaysAtOnce(t *testing.T) {
	l := newLane(t)
	c := l.bring(request(l.pass("Cookie", l.login(l.r, "paul", l.made.Container.ID))))
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

func TestAContainerThatIsNotThereEndsTheRequest(t *testing.T) {
	l := newLane(t)
	free, err := net.Listen("tcp", "127.0.0.1:0")
	ok(t, err)
	at := free.Addr().(*net.TCPAddr)
	ok(t, free.Close())
	_, err = l.r.Announce(l.made.Container.ID, l.made.Hosting.Token.Reveal(), Announcement{
		Source: netip.MustParseAddr("127.0.0.1"), Ports: map[ServiceName]uint16{"web": uint16(at.Port)},
	})
	ok(t, err)
	ended(t, l.bring(request(l.pass("Cookie", l.login(l.r, "paul", l.made.Container.ID)))), "nobody is there")
}

// When the agent ends, everything that it carries ends with it; the next one carries on.
func TestTheEndOfThePassage(t *testing.T) {
	l := newLane(t)
	session := l.login(l.r, "paul", l.made.Container.ID)
	stop := l.carry()
	open, half := l.bring(request(l.pass("Cookie", session))), l.bring("GET / HTTP/1.1\r\n")
	if !says(open, "hello") {
		t.Fatal("it is not reached")
	}
	stop()
	ended(t, open, "open")
	ended(t, half, "half said")
	eventually(t, "nothing is open", func() bool { return l.all.Stats().Open == 0 })
	l.carry()
	if !says(l.bring(request(l.pass("Cookie", session))), "hello") {
		t.Error("the next one does not carry")
	}
}

func TestRequestsBetweenDoorAndPassageAreBounded(t *testing.T) {
	l := newLane(t)
	session := l.login(l.r, "paul", l.made.Container.ID)
	const most = 100
	l.all.passage.most = most
	for range most {
		l.pass("Cookie", session)
	}
	if w := l.request(PathCheck, l.made.Container.ID, "", "Cookie", session, "Accept", "text/event-stream"); w.Code < 500 || w.Header().Get(TellPass) != "" {
		t.Errorf("one more: %d", w.Code)
	}
	l.forward(passLife)
	if key := l.pass("Cookie", session); len(l.all.passage.waiting) != 1 || len(l.all.passage.order) != 1 || key == "" {
		t.Errorf("%d wait", len(l.all.passage.waiting))
	}
}
