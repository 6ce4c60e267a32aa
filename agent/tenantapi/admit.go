package tenantapi

import "github.com/demiurge-platform/demiurge/shared/fault"

// admit finds out who makes a call and lets in whom the row's action is allowed.
func (s *Server) admit(*Call, *Route) error {
	return fault.New(fault.Unauthenticated, "log in first")
}
