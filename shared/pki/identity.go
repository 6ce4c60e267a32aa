package pki

import (
	"crypto/x509"
	"net/url"
	"strings"

	"github.com/demiurge-platform/demiurge/shared/id"
)

// Role is what a program may be in a cluster. The set is closed: a new one is a line in roleUse.
type Role string

// The roles.
const (
	RoleCoordinator Role = "coordinator" // serves the API and speaks Raft with its peers
	RoleAgent       Role = "agent"       // acts for its own host, and only dials
)

// roleUse says what the certificates of a role are good for. An agent serves nobody with its certificate,
// so a stolen one cannot pass for a coordinator even where somebody forgot to ask for the role.
var roleUse = map[Role][]x509.ExtKeyUsage{
	RoleCoordinator: {x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	RoleAgent:       {x509.ExtKeyUsageClientAuth},
}

// ParseRole checks a role.
func ParseRole(s string) (Role, error) {
	if _, ok := roleUse[Role(s)]; !ok {
		return "", refuse(Malformed, "cannot use %q as a role: it is one of coordinator, agent", short(s))
	}
	return Role(s), nil
}

// Identity is who a program is: a role and a name (a host id or a coordinator's node id) in a cluster. Only
// NewIdentity and ParseIdentity make one that is not zero.
type Identity struct {
	cluster, name string
	role          Role
}

const scheme = "demiurge://"

// NewIdentity checks the parts. A cluster id is a DNS label of at most 63 characters (a UUID is one); a
// name is what id.ParseHost accepts.
func NewIdentity(cluster string, role Role, name string) (Identity, error) {
	if err := checkCluster(cluster); err != nil {
		return Identity{}, err
	}
	if _, err := ParseRole(string(role)); err != nil {
		return Identity{}, err
	}
	if _, err := id.ParseHost(name); err != nil {
		return Identity{}, because(Malformed, err, "cannot name a %s", role)
	}
	return Identity{cluster: cluster, role: role, name: name}, nil
}

// ParseIdentity reads what String printed, and nothing else: no other spelling of an identity exists.
func ParseIdentity(s string) (Identity, error) {
	rest, ok := strings.CutPrefix(s, scheme)
	parts := strings.Split(rest, "/")
	if !ok || len(parts) != 3 {
		return Identity{}, refuse(Malformed, "cannot use %q as an identity: want demiurge://<cluster>/<role>/<name>", short(s))
	}
	i, err := NewIdentity(parts[0], Role(parts[1]), parts[2])
	if err != nil {
		return Identity{}, because(Malformed, err, "cannot use %q as an identity", short(s))
	}
	return i, nil
}

// Cluster is the id of the cluster.
func (i Identity) Cluster() string { return i.cluster }

// Role is the role.
func (i Identity) Role() Role { return i.role }

// Name is the host id of an agent, or the node id of a coordinator.
func (i Identity) Name() string { return i.name }

// IsZero reports whether this is nobody.
func (i Identity) IsZero() bool { return i == Identity{} }

// String prints the identity as it stands in a certificate.
func (i Identity) String() string {
	return scheme + i.cluster + "/" + string(i.role) + "/" + i.name
}

// uri is String for x509.
func (i Identity) uri() *url.URL {
	return &url.URL{Scheme: "demiurge", Host: i.cluster, Path: "/" + string(i.role) + "/" + i.name}
}

// identityOf reads who a certificate is for. It does not verify the certificate.
func identityOf(leaf *x509.Certificate) (Identity, error) {
	if len(leaf.URIs) != 1 {
		return Identity{}, refuse(Malformed, "cannot accept the certificate of %q: it carries %d identities and must carry one; use a certificate that this cluster issued",
			short(leaf.Subject.CommonName), len(leaf.URIs))
	}
	return ParseIdentity(leaf.URIs[0].String())
}

// checkCluster refuses what is no cluster id. It is the host part of the identity's URI, so that the name
// constraint of a root can bind the root to its cluster.
func checkCluster(s string) error {
	ok := s != "" && len(s) <= 63 && s[0] != '-' && s[len(s)-1] != '-'
	for _, c := range []byte(s) {
		ok = ok && (c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-')
	}
	if !ok {
		return refuse(Malformed, "cannot use %q as a cluster id: want 1 to 63 characters of [a-z0-9-], beginning and ending with a letter or digit", short(s))
	}
	return nil
}
