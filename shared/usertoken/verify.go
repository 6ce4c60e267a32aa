// Package usertoken tells who a platform user is by a signed token (JWT, RFC 7519) of an issuer that the
// operator named. It decides nothing about what that user may do.
//
// Everything that a token says of its own verification is ignored, but for the name of a key among those
// that the operator chose: the algorithms are pinned for each issuer, and a key fits only the algorithms of
// its kind. The keys come from a file that is watched or a URL that is asked in the background; Verify never
// waits for either. A source that is down, slow or gives what cannot be used leaves the keys of before in
// place for a bounded time, and without keys nobody gets in.
package usertoken

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/shared/id"
)

// MaxToken is the size of the largest token that is looked at.
const MaxToken = 8 << 10

// User is who a token was made for.
type User struct {
	ID      id.User
	Issuer  string    // the name of the issuer in the configuration
	Expires time.Time // the token opens nothing after that
}

// String names the user in events: user/<issuer>/<id>.
func (u User) String() string { return "user/" + u.Issuer + "/" + string(u.ID) }

// Options of a Verifier.
type Options struct {
	Issuers []Issuer
	Logger  hclog.Logger
	// Now is the clock of the world. Nil: time.Now.
	Now func() time.Time
	// Elapsed is a clock that is never set, from any beginning. Nil: the one of this process.
	Elapsed func() time.Duration
	// Transport asks for key sets. Nil: a new connection for each question, without a proxy.
	Transport http.RoundTripper
}

// Verifier verifies tokens. Run must be running for keys from URLs to arrive and for files to be watched.
type Verifier struct {
	opts    Options
	issuers map[string]*issuer // by the claim iss
	order   []*issuer
	reader  *jwt.Parser // reads who the issuer would be, and believes nothing

	// beginning and elapsed are the two clocks at the same moment.
	beginning time.Time
	elapsed   time.Duration
}

// issuer is an Issuer at work.
type issuer struct {
	Issuer
	parser *jwt.Parser
	source source
}

// New makes a Verifier and reads the key files. A file that cannot be used is an error: an operator is
// there to see it. Later it is not, and the keys of before stay.
func New(opts Options) (*Verifier, error) {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Elapsed == nil {
		began := time.Now()
		opts.Elapsed = func() time.Duration { return time.Since(began) }
	}
	if err := Validate("issuers", opts.Issuers); err != nil {
		return nil, err
	}
	opts.Logger = opts.Logger.Named("users")
	v := &Verifier{
		opts: opts, issuers: map[string]*issuer{}, reader: jwt.NewParser(jwt.WithStrictDecoding()),
		beginning: opts.Now(), elapsed: opts.Elapsed(),
	}
	for _, conf := range opts.Issuers {
		i := &issuer{Issuer: conf.withDefaults()}
		i.parser = jwt.NewParser(
			jwt.WithValidMethods(i.Algorithms), jwt.WithStrictDecoding(), jwt.WithIssuer(i.Issuer.Issuer), jwt.WithAudience(i.Audience),
			jwt.WithExpirationRequired(), jwt.WithIssuedAt(), jwt.WithLeeway(i.Leeway), jwt.WithTimeFunc(v.now),
		)
		log := opts.Logger.With("issuer", i.Name)
		if i.JWKSURL != "" {
			i.source = newRemote(i.Issuer, opts.Transport, log)
		} else {
			local := newLocal(i.Issuer, log)
			if err := local.load(); err != nil {
				return nil, fmt.Errorf("cannot use the keys of issuer %q in %s: %w", i.Name, i.JWKSFile, err)
			}
			i.source = local
		}
		v.issuers[i.Issuer.Issuer] = i
		v.order = append(v.order, i)
	}
	return v, nil
}

// Run keeps the keys up to date until ctx is done.
func (v *Verifier) Run(ctx context.Context) {
	var running sync.WaitGroup // all are waited for
	for _, i := range v.order {
		running.Go(func() { i.source.run(ctx) })
	}
	running.Wait()
}

// Problems tells what is wrong with the keys of issuers, in words for an operator, by the issuer's name.
func (v *Verifier) Problems() map[string]string {
	out := map[string]string{}
	for _, i := range v.order {
		if problem := i.source.problem(); problem != "" {
			out[i.Name] = problem
		}
	}
	return out
}

// Looks reports whether a credential has the form of a token of a user: three parts. No other credential of
// Demiurge has.
func Looks(credential string) bool { return strings.Count(credential, ".") == 2 }

// now is the time by which tokens expire. A clock that is set back does not make expired tokens good again:
// the time that has passed since the beginning counts too.
func (v *Verifier) now() time.Time {
	now, passed := v.opts.Now(), v.beginning.Add(v.opts.Elapsed()-v.elapsed)
	if passed.After(now) {
		return passed
	}
	return now
}

// Verify tells who a token was made for. Its errors say why a token is refused and never repeat the token;
// they are for the log, as they would help whoever tries.
func (v *Verifier) Verify(token string) (User, error) {
	if len(token) > MaxToken {
		return User{}, fmt.Errorf("cannot accept a token of %d bytes: want at most %d", len(token), MaxToken)
	}
	claims := jwt.MapClaims{} // a struct would take a claim "SUB" for "sub"
	if _, _, err := v.reader.ParseUnverified(token, claims); err != nil {
		return User{}, err
	}
	name, _ := claims["iss"].(string)
	i := v.issuers[name]
	if i == nil {
		return User{}, errors.New("the token is of another issuer")
	}
	verified, err := i.parser.Parse(token, i.keyOf)
	if err != nil {
		return User{}, err
	}
	claims, ok := verified.Claims.(jwt.MapClaims)
	if !ok || !verified.Valid {
		return User{}, errors.New("the token is not valid")
	}
	return i.user(claims, v.now())
}

// keyOf is the key that a token has to be verified with. It looks at the header alone.
func (i *issuer) keyOf(token *jwt.Token) (any, error) {
	// What must be understood to verify a token, and is not, makes it invalid (RFC 7515, section 4.1.11).
	if _, ok := token.Header["crit"]; ok {
		return nil, errors.New("the token has a header that must be understood, and is not (crit)")
	}
	if typ, ok := token.Header["typ"]; ok {
		text, _ := typ.(string)
		text = strings.TrimPrefix(strings.ToLower(text), "application/")
		if text != "jwt" && text != "at+jwt" {
			return nil, fmt.Errorf("the token is of type %.20q: want JWT or at+jwt", typ)
		}
	}
	kid := ""
	if given, ok := token.Header["kid"]; ok {
		if kid, ok = given.(string); !ok || kid == "" {
			return nil, errors.New("the token's kid is not a text")
		}
	}
	key, err := choose(i.source.keys(), kid, token.Method.Alg())
	if errors.Is(err, errUnknownKey) {
		i.source.miss()
	}
	return key, err
}

// user reads from claims that are verified who the user is.
func (i *issuer) user(claims jwt.MapClaims, now time.Time) (User, error) {
	if err := noRefreshToken(claims); err != nil {
		return User{}, err
	}
	for _, name := range []string{"exp", "nbf", "iat"} {
		// Far beyond any real one, a number would wrap round on its way to a time.
		if n, ok := claims[name].(float64); ok && (n < 0 || n > 1e11) {
			return User{}, fmt.Errorf("the token's %s is out of bounds", name)
		}
	}
	expires, err := claims.GetExpirationTime()
	if err != nil || expires == nil {
		return User{}, errors.New("the token does not expire")
	}
	if expires.After(now.Add(i.MaxLife + i.Leeway)) {
		return User{}, fmt.Errorf("the token lives longer than the %s that are allowed (max_life)", i.MaxLife)
	}
	name, ok := claims[i.UserClaim].(string)
	if !ok || name == "" {
		return User{}, fmt.Errorf("the token has no text in the claim %s", i.UserClaim)
	}
	user, err := id.ParseUser(i.UserPrefix + name)
	if err != nil {
		return User{}, err
	}
	return User{ID: user, Issuer: i.Name, Expires: expires.Add(i.Leeway)}, nil
}

// noRefreshToken refuses a token that is for getting other tokens and not for calling anybody. Issuers that
// sign both with the same keys tell them apart by one of these claims.
func noRefreshToken(claims jwt.MapClaims) error {
	for _, name := range []string{"typ", "type", "token_type", "token_use"} {
		if kind, ok := claims[name].(string); ok && strings.Contains(strings.ToLower(kind), "refresh") {
			return fmt.Errorf("the token is a refresh token (claim %s)", name)
		}
	}
	return nil
}
