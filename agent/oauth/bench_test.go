package oauth

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/demiurge-platform/demiurge/shared/logging"
)

// fill gives a store so many tokens of logins, which expire over the hours, without a disk in between.
func fill(t testing.TB, s *Store, c ClientID, tokens int, spread time.Duration) {
	t.Helper()
	for made := 0; made < tokens; {
		err := s.change(ctx, false, func(x *tx) error {
			for range 1000 {
				at := x.at
				x.at += int64(made) * spread.Milliseconds() / int64(tokens)
				g := x.do(record{op: putGrant, grant: x.lastGrant + 1, client: x.clients[c].Client, user: "ada", scope: "room:read room:write", ends: x.at + x.opts.lifetimes.Absolute.Milliseconds()})
				x.do(record{op: rotate, known: g, generation: 1, rotated: x.at})
				x.issue(&Issued{}, g, g.scope.Value())
				x.at = at
				made += 2
			}
			return nil
		})
		must(t, err)
	}
}

func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// mixed expires so many tokens over a day and reports what the memory did.
func mixed(t testing.TB, tokens int) (perToken, left float64, longest time.Duration) {
	f := newFixture(t)
	f.opts.Limits.Tokens, f.opts.Limits.PerUser, f.opts.Limits.PerPerson = 2*tokens, 2*tokens, 2*tokens
	f.start()
	s := f.open(ourOrg)
	s.opts.lifetimes.Refresh = 5 * time.Hour
	c := publicClient(t, s)
	base := heap()
	fill(t, s, c, tokens, 10*time.Hour)
	full := heap() - base
	for s.Stats().Live != (Counts{}) {
		f.clock.forward(time.Hour)
		for more := true; more; {
			began := time.Now()
			more = s.sweep(sweepPiece)
			longest = max(longest, time.Since(began))
		}
	}
	s.check(t)
	if got := s.Stats(); got.Expired[Access]+got.Expired[Refresh] != uint64(tokens) || len(s.users) != 0 {
		t.Fatalf("%+v", got)
	}
	left = float64(heap()-base) / float64(tokens)
	runtime.KeepAlive(s)
	must(t, f.all.CloseAll())
	return float64(full) / float64(tokens), left, longest
}

// TestMemoryReturnsToTheBaseline: a million tokens with mixed expiry take less than 1 KiB each, and when they have
// expired nothing is left of them.
func TestMemoryReturnsToTheBaseline(t *testing.T) {
	perToken, left, _ := mixed(t, mixedTokens)
	if perToken > 1024 || perToken < 50 || left > 10 {
		t.Fatalf("%.0f bytes for each token, %.1f are left of each", perToken, left)
	}
}

// BenchmarkMillionTokens: memory of 1,000,000 tokens, what is left when they have expired, and the longest
// time for which the store was locked by the clean-up.
func BenchmarkMillionTokens(b *testing.B) {
	for b.Loop() {
		perToken, left, longest := mixed(b, 1_000_000)
		b.ReportMetric(perToken, "B/token")
		b.ReportMetric(left, "B/token-left")
		b.ReportMetric(float64(longest.Microseconds())/1000, "longest-hold-ms")
		b.ReportMetric(0, "ns/op")
	}
}

// BenchmarkExpiry: 100,000 tokens expire at once while others ask; the longest that one of them was blocked. Beside
// it stands the longest of the same length of time in which nobody cleans up, but computes: that much is the
// machine's, which runs other things too.
func BenchmarkExpiry(b *testing.B) {
	for b.Loop() {
		f := newFixture(b)
		s := f.open(ourOrg)
		s.opts.limits.PerUser, s.opts.limits.PerPerson = 1_000_000, 1_000_000
		c := publicClient(b, s)
		fill(b, s, c, 100_000, time.Millisecond)
		good := login(b, s, c, "bob").Access.Reveal()
		f.clock.forward(30*24*time.Hour + time.Second)
		heap() // what was made for the benchmark is collected before it
		var holds []time.Duration
		began, own := time.Now(), time.Duration(0)
		blocked := longestAsk(s, good, func() {
			for more := true; more; {
				hold, cpu := time.Now(), cpuTime(b)
				more = s.sweep(sweepPiece)
				own = max(own, cpuTime(b)-cpu)
				holds = append(holds, time.Since(hold))
				runtime.Gosched()
			}
		})
		all := time.Since(began)
		idle := longestAsk(s, good, func() {
			for began := time.Now(); time.Since(began) < all; {
				for piece := time.Now(); time.Since(piece) < sweepHold; {
				}
				runtime.Gosched()
			}
		})
		slices.Sort(holds)
		ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
		b.ReportMetric(ms(all), "all-ms")
		b.ReportMetric(ms(blocked), "longest-block-ms")
		b.ReportMetric(ms(idle), "longest-without-ms")
		b.ReportMetric(ms(holds[len(holds)-1]), "longest-hold-ms")
		b.ReportMetric(ms(own), "longest-hold-cpu-ms")
		b.ReportMetric(ms(holds[len(holds)*99/100]), "p99-hold-ms")
		b.ReportMetric(0, "ns/op")
		must(b, f.all.CloseAll())
	}
}

// longestAsk asks a store what a token stands for until work is done on another thread, and tells the longest that
// an answer took.
func longestAsk(s *Store, token string, work func()) (longest time.Duration) {
	stop := make(chan struct{})
	var asking sync.WaitGroup
	asking.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			began := time.Now()
			s.Check(token)
			longest = max(longest, time.Since(began))
			runtime.Gosched()
		}
	})
	runtime.LockOSThread()
	work()
	runtime.UnlockOSThread()
	close(stop)
	asking.Wait()
	return longest
}

// cpuTime is what this thread has computed: on a busy machine a hold is long because something else runs.
func cpuTime(b *testing.B) time.Duration {
	var now unix.Timespec
	must(b, unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &now))
	return time.Duration(now.Nano())
}

// perSecond runs do in so many goroutines and reports how often it was done.
func perSecond(b *testing.B, callers int, do func() error) {
	b.Helper()
	var left atomic.Int64
	left.Store(int64(b.N))
	var all sync.WaitGroup
	b.ResetTimer()
	for range callers {
		all.Go(func() {
			for left.Add(-1) >= 0 {
				if err := do(); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "per-s")
}

func benchStore(b *testing.B) (*Store, ClientID) {
	f := newFixture(b)
	f.opts.Limits = Limits{Clients: 10, Codes: 10_000_000, Tokens: 10_000_000, PerUser: 10_000_000, PerPerson: 10_000_000, PerService: 10_000_000, PerFamily: 10_000_000}
	f.opts.Now = time.Now
	f.start()
	s := f.open(ourOrg)
	b.Cleanup(func() { _ = f.all.CloseAll() })
	return s, publicClient(b, s)
}

// BenchmarkExchange: codes exchanged for tokens, each durable before its answer.
func BenchmarkExchange(b *testing.B) {
	for _, callers := range []int{1, 16, 128} {
		b.Run(fmt.Sprint(callers, " callers"), func(b *testing.B) {
			s, c := benchStore(b)
			codes := make(chan string, b.N)
			for n := 0; n < b.N; n += 1000 {
				must(b, s.change(ctx, false, func(x *tx) error {
					for range 1000 {
						g := x.do(record{op: putGrant, grant: x.lastGrant + 1, client: x.clients[c].Client, user: "ada", scope: "room:read", ends: x.at + 1e9})
						value, d := newValue(Code)
						x.do(record{op: putToken, known: g, kind: Code, digest: d, scope: "room:read", expires: x.at + 1e8, code: codeTies{redirect, challengeOf(verifier)}})
						if len(codes) < cap(codes) {
							codes <- value.Reveal()
						}
					}
					return nil
				}))
			}
			perSecond(b, callers, func() error {
				_, err := redeem(s, c, <-codes)
				return err
			})
		})
	}
}

// BenchmarkRefresh: refresh tokens exchanged, each caller its own login.
func BenchmarkRefresh(b *testing.B) {
	for _, callers := range []int{1, 16, 128} {
		b.Run(fmt.Sprint(callers, " callers"), func(b *testing.B) {
			s, c := benchStore(b)
			tokens := make(chan logging.Secret, callers)
			for range callers {
				out, err := redeem(s, c, code(b, s, c, "ada"))
				must(b, err)
				tokens <- out.Refresh
			}
			perSecond(b, callers, func() error {
				out, err := refresh(s, c, <-tokens)
				tokens <- out.Refresh
				return err
			})
		})
	}
}

// BenchmarkTokenEndpoint: the exchange of refresh tokens through the HTTP handler.
func BenchmarkTokenEndpoint(b *testing.B) {
	s, c := benchStore(b)
	server := benchServer(b, s)
	const callers = 64
	tokens := make(chan string, callers)
	for range callers {
		out, err := redeem(s, c, code(b, s, c, "ada"))
		must(b, err)
		tokens <- out.Refresh.Reveal()
	}
	perSecond(b, callers, func() error {
		form := "grant_type=refresh_token&client_id=" + string(c) + "&refresh_token=" + <-tokens
		r := httptest.NewRequest(http.MethodPost, "/oauth/token", strings.NewReader(form))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		w := httptest.NewRecorder()
		server.ServeHTTP(w, r)
		tokens <- field(b, reply{w.Result(), w.Body.String()}, "refresh_token")
		return nil
	})
}

// BenchmarkCheck: /oauth/authenticate through the HTTP handler, among 100,000 tokens.
func BenchmarkCheck(b *testing.B) {
	s, c := benchStore(b)
	server := benchServer(b, s)
	fill(b, s, c, 100_000, time.Millisecond)
	out, err := redeem(s, c, code(b, s, c, "ada"))
	must(b, err)
	bearer := "Bearer " + out.Access.Reveal()
	perSecond(b, 8, func() error {
		r := httptest.NewRequest(http.MethodGet, "/oauth/authenticate", nil)
		r.Header.Set("Authorization", bearer)
		w := httptest.NewRecorder()
		if server.ServeHTTP(w, r); w.Code != http.StatusOK {
			return fmt.Errorf("%d", w.Code)
		}
		return nil
	})
}

func benchServer(b *testing.B, s *Store) *Server {
	server, err := NewServer(ServerOptions{
		Issuer: "https://" + s.opts.hostname, Store: s, Login: everybody{}, Members: everybody{}, Consent: everybody{}, Logger: hclog.NewNullLogger(),
	})
	must(b, err)
	return server
}

// BenchmarkRestore: a journal of 200,000 tokens is read, and a section is written and read.
func BenchmarkRestore(b *testing.B) {
	f := newFixture(b)
	s := f.open(ourOrg)
	s.opts.limits.PerUser, s.opts.limits.PerPerson = 1_000_000, 1_000_000
	c := publicClient(b, s)
	fill(b, s, c, 200_000, time.Millisecond)
	section, _ := s.Section()
	b.ReportMetric(float64(len(section))/200_000, "B/token")
	must(b, f.all.CloseAll())
	for b.Loop() {
		f.start()
		began := time.Now()
		s := f.open(ourOrg)
		b.ReportMetric(float64(time.Since(began).Milliseconds()), "open-ms")
		began = time.Now()
		s.Section()
		b.ReportMetric(float64(time.Since(began).Milliseconds()), "section-ms")
		began = time.Now()
		must(b, emptyStore(f.clock.now).read(section))
		b.ReportMetric(float64(time.Since(began).Milliseconds()), "read-ms")
		must(b, f.all.CloseAll())
	}
	b.ReportMetric(0, "ns/op")
}
