package tenantapi

import (
	_ "embed"
	"net/http"
)

// document is the OpenAPI document of the whole table. A test of the agent makes it and compares.
//
//go:embed openapi.json
var document []byte

const documentType = "application/openapi+json"

// openAPI answers with the document.
func (s *Server) openAPI(c *Call) error {
	c.W.Header().Set("Content-Type", documentType)
	c.W.Header().Set("Cache-Control", "public, max-age=300")
	c.W.WriteHeader(http.StatusOK)
	_, _ = c.W.Write(document) // the caller is gone: nobody is left to tell
	return nil
}
