package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	mdns "github.com/miekg/dns"
)

// Bounds of what clients may take. A resolver holds few connections and none of them for long.
const (
	maxConns        = 256
	maxConnsEach    = 32               // of one address
	queriesPerConn  = 128              // then it is closed
	firstQuery      = 2 * time.Second  // for the first query of a connection to be read whole
	idleConn        = 5 * time.Second  // for each further one
	writeConn       = 2 * time.Second  // for an answer to be taken
	udpBuffer       = 4096             // longest query by UDP
	shutdownTimeout = 5 * time.Second  // for queries under way when the server stops
	bindTries       = 10               // to find a port that is free for both UDP and TCP, when any will do
	panicEvery      = 10 * time.Second // at most one log line for panics in this time
)

// ServerOptions configure the embedded name server. All fields are needed.
type ServerOptions struct {
	Config Config // validated
	Domain string
	Source Source
	Logger hclog.Logger
}

// Server is an authoritative name server for the domain, by UDP and TCP. It answers from the state and
// from nothing else: it asks nobody, and refuses what is not in its zone.
type Server struct {
	authority *authority
	log       hclog.Logger
	udp       net.PacketConn
	tcp       *limited
	rates     *rates // of answers by UDP

	queries, refused, crashed, limited atomic.Uint64
	lastCrash                          atomic.Int64 // time of the last panic that was logged
}

// ServerStats counts since the start.
type ServerStats struct {
	Queries         uint64 // that were answered
	Refused         uint64 // of them, with REFUSED
	Crashed         uint64 // queries that were answered with SERVFAIL because of a fault in this program
	Limited         uint64 // queries by UDP above the limit of their network
	RefusedConns    uint64 // TCP connections above the limits
	OpenConnections int
}

// Listen binds the addresses of the server. Answers begin with Run; a server that is not run must be
// closed.
func Listen(opts ServerOptions) (*Server, error) {
	if err := opts.Config.Validate("dns", opts.Domain); err != nil {
		return nil, fmt.Errorf("cannot serve DNS: %w", err)
	}
	authority, err := newAuthority(opts.Config, opts.Domain, opts.Source)
	if err != nil {
		return nil, fmt.Errorf("cannot serve DNS: %w", err)
	}
	s := &Server{authority: authority, log: opts.Logger.Named("dns"), rates: newRates(time.Now)}
	udp, tcp, err := bind(opts.Config.Listen)
	if err != nil {
		return nil, fmt.Errorf("cannot listen for DNS on %s (%w): stop what uses the port (ss -lunpt shows it), set dns.listen to another address, or, below port 1024, give the program CAP_NET_BIND_SERVICE", opts.Config.Listen, err)
	}
	s.udp, s.tcp = udp, limit(tcp)
	return s, nil
}

// bind listens by UDP and TCP on one port. Port 0 is any that is free for both.
func bind(address string) (net.PacketConn, net.Listener, error) {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, nil, err
	}
	for try := 1; ; try++ {
		udp, err := net.ListenPacket("udp", address)
		if err != nil {
			return nil, nil, err
		}
		tcp, err := net.Listen("tcp", udp.LocalAddr().String())
		if err == nil {
			return udp, tcp, nil
		}
		_ = udp.Close()
		if port != "0" || try == bindTries {
			return nil, nil, err
		}
	}
}

// Addr is the address that the server listens on, by UDP and TCP.
func (s *Server) Addr() string { return s.udp.LocalAddr().String() }

// Close frees the addresses. It is for a server that Run was not called for, and does no harm otherwise.
func (s *Server) Close() error {
	err := errors.Join(s.udp.Close(), s.tcp.Close())
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Stats tells what the server has done.
func (s *Server) Stats() ServerStats {
	open, refused := s.tcp.counts()
	return ServerStats{
		Queries: s.queries.Load(), Refused: s.refused.Load(), Crashed: s.crashed.Load(), Limited: s.limited.Load(), RefusedConns: refused, OpenConnections: open,
	}
}

// Run answers until ctx ends, then finishes what is under way and frees the addresses. It returns an
// error only when it had to end before.
func (s *Server) Run(ctx context.Context) error {
	defer func() { _ = s.Close() }()
	udp := &mdns.Server{PacketConn: s.udp, UDPSize: udpBuffer}
	tcp := &mdns.Server{
		Listener: s.tcp, MaxTCPQueries: queriesPerConn, ReadTimeout: firstQuery,
		IdleTimeout: func() time.Duration { return idleConn },
	}
	ended := make(chan error, 2)
	var started, running sync.WaitGroup
	for server, isUDP := range map[*mdns.Server]bool{udp: true, tcp: false} {
		server.MsgAcceptFunc = accept
		server.Handler = mdns.HandlerFunc(func(w mdns.ResponseWriter, query *mdns.Msg) { s.handle(w, query, isUDP) })
		started.Add(1)
		once := sync.OnceFunc(started.Done)
		server.NotifyStartedFunc = once
		running.Go(func() {
			err := server.ActivateAndServe()
			once()
			ended <- err
		})
	}
	started.Wait() // a server that has not started cannot be shut down
	var err error
	select {
	case <-ctx.Done():
	case err = <-ended:
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	for _, server := range []*mdns.Server{udp, tcp} {
		if stopErr := server.ShutdownContext(stop); stopErr != nil && ctx.Err() != nil {
			s.log.Debug("the server did not stop cleanly", "error", stopErr)
		}
	}
	_ = s.Close()
	running.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("cannot go on serving DNS on %s: %w", s.Addr(), err)
}

// accept looks at the header of a message before the rest is read.
func accept(h mdns.Header) mdns.MsgAcceptAction {
	const response, opcode = 1 << 15, 0xf << 11
	switch {
	case h.Bits&response != 0:
		return mdns.MsgIgnore // an answer to an answer would never end
	case h.Bits&opcode != mdns.OpcodeQuery<<11:
		return mdns.MsgRejectNotImplemented
	case h.Qdcount != 1 || h.Ancount != 0 || h.Nscount != 0 || h.Arcount > 2:
		return mdns.MsgReject // queries have one question, and beside it at most OPT and a signature
	}
	return mdns.MsgAccept
}

// handle answers one query. A fault in it costs this one answer and not the coordinator.
func (s *Server) handle(w mdns.ResponseWriter, query *mdns.Msg, udp bool) {
	defer func() {
		if r := recover(); r != nil {
			s.panicked(r)
			_ = w.WriteMsg(new(mdns.Msg).SetRcode(query, mdns.RcodeServerFailure)) // to a client that may be gone
		}
	}()
	if udp && !s.within(w, query) {
		return
	}
	reply := s.authority.answer(query, udp)
	s.queries.Add(1)
	if reply.Rcode == mdns.RcodeRefused {
		s.refused.Add(1)
	}
	if err := w.WriteMsg(reply); err != nil {
		s.log.Trace("cannot send an answer", "client", w.RemoteAddr(), "error", err)
	}
}

// within reports whether a query by UDP is to be answered. Of those above the limit some are told to come by TCP.
func (s *Server) within(w mdns.ResponseWriter, query *mdns.Msg) bool {
	v := s.rates.take(w.RemoteAddr())
	if v == answered {
		return true
	}
	s.limited.Add(1)
	if v == shortened {
		reply := new(mdns.Msg).SetReply(query)
		reply.Truncated = true
		_ = w.WriteMsg(reply) // to a client that may be gone, or never was there
	}
	return false
}

func (s *Server) panicked(reason any) {
	s.crashed.Add(1)
	now, last := time.Now().UnixNano(), s.lastCrash.Load()
	if now-last > int64(panicEvery) && s.lastCrash.CompareAndSwap(last, now) {
		s.log.Error("a DNS query could not be answered because of a fault in this program", "panic", reason, "stack", string(debug.Stack()))
	}
}
