package command

import (
	"errors"
	"time"

	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// ObserveHost records what a host's agent saw. It registers an unknown host when it carries HostReport.
type ObserveHost struct {
	Meta
	Host     id.Host         `json:"host"`
	Instance string          `json:"instance"`
	Full     bool            `json:"full,omitempty"` // names every gateway that exists on the host
	Report   *HostReport     `json:"report,omitempty"`
	Gateways []GatewayReport `json:"gateways,omitempty"`
	Events   []Event         `json:"events,omitempty"`
	// StaysSilent leaves a silent host to the host monitor, which knows more than that one report came. Version 1 has no
	// such field, and with it a silent host is alive as soon as it reports. A lost one is in any case.
	StaysSilent bool `json:"stays_silent,omitempty"`
}

// HostReport is the durable part of what an agent says of its host.
type HostReport struct {
	Address           string        `json:"address"`
	Capacity          int           `json:"capacity"`
	Version           string        `json:"version"`
	NginxState        string        `json:"nginx_state"` // serving, down, wedged
	DesiredGeneration uint64        `json:"desired_generation,omitempty"`
	LiveGeneration    uint64        `json:"live_generation,omitempty"`
	Quarantined       []Quarantined `json:"quarantined,omitempty"`
	LastError         string        `json:"last_error,omitempty"`
}

// Quarantined is a part of a host's nginx configuration that nginx refused.
type Quarantined struct {
	Part    string    `json:"part"`
	Message string    `json:"message"`
	Since   time.Time `json:"since"`
}

// GatewayReport is what an agent saw of one gateway. See api.GatewayReport for the meaning of each field.
type GatewayReport struct {
	Gateway      id.Gateway      `json:"gateway"`
	Incarnation  uint64          `json:"incarnation"`
	Phase        string          `json:"phase"`
	Organization id.Organization `json:"organization,omitempty"`
	Epoch        id.Epoch        `json:"epoch,omitempty"`
	BootID       string          `json:"boot_id,omitempty"`
	PID          int             `json:"pid,omitempty"`
	Restarts     int             `json:"restarts,omitempty"`
	Code         fault.Code      `json:"code,omitempty"`
	Message      string          `json:"message,omitempty"`
	Undo         []Step          `json:"undo,omitempty"`
}

// SetHostStatus records the host monitor's decision: alive, silent or lost.
type SetHostStatus struct {
	Meta
	Host   id.Host `json:"host"`
	Status string  `json:"status"`
	Reason string  `json:"reason"`
}

// SetHostSchedulable cordons (false) or uncordons a host.
type SetHostSchedulable struct {
	Meta
	Host        id.Host `json:"host"`
	Schedulable bool    `json:"schedulable"`
}

// DeleteHost forgets a host that holds no organization, and its gateways.
type DeleteHost struct {
	Meta
	Host id.Host `json:"host"`
}

// CreateGateways adds gateways to a pool, as many of them, in order, as the pool's maximum and the hosts'
// capacities allow at the moment of applying.
type CreateGateways struct {
	Meta
	Pool     id.Pool      `json:"pool"`
	Gateways []NewGateway `json:"gateways"`
	Reason   string       `json:"reason"`
	// BesidesLost leaves gateways of lost hosts out of the pool's maximum. Version 1 has no such field and
	// counts them.
	BesidesLost bool `json:"besides_lost,omitempty"`
}

func decodeObserveHost1(payload []byte) (Command, error) {
	c, err := decode[ObserveHost](payload)
	if err == nil && c.(ObserveHost).StaysSilent {
		return nil, errors.New("version 1 has no field stays_silent")
	}
	return c, err
}

// createGateways1 is version 1 of CreateGateways.
type createGateways1 struct {
	Meta
	Pool     id.Pool      `json:"pool"`
	Gateways []NewGateway `json:"gateways"`
	Reason   string       `json:"reason"`
}

func (createGateways1) Type() Type     { return TypeCreateGateways }
func (createGateways1) Version() uint8 { return 1 }

func decodeCreateGateways1(payload []byte) (Command, error) {
	c, err := decode[createGateways1](payload)
	if err != nil {
		return nil, err
	}
	one := c.(createGateways1)
	return CreateGateways{Meta: one.Meta, Pool: one.Pool, Gateways: one.Gateways, Reason: one.Reason}, nil
}

// NewGateway is one gateway to create.
type NewGateway struct {
	ID   id.Gateway `json:"id"`
	Host id.Host    `json:"host"`
}

// RetireGateways ends gateways that hold no organization; the others are left alone.
type RetireGateways struct {
	Meta
	Gateways []id.Gateway `json:"gateways"`
	Reason   string       `json:"reason"`
}

// RecycleGateway demands a fresh process for a gateway without organization, and ends its quarantine.
type RecycleGateway struct {
	Meta
	Gateway id.Gateway `json:"gateway"`
	Reason  string     `json:"reason,omitempty"`
}

// QuarantineGateway takes a gateway out of the pool for inspection. One with an organization goes on
// serving it and is quarantined at its release instead of being recycled into the pool.
type QuarantineGateway struct {
	Meta
	Gateway id.Gateway `json:"gateway"`
	Reason  string     `json:"reason,omitempty"`
}

// RenewGateways takes in that a host has begun gateways anew more often than the state demanded, which is so
// when the state was restored and is older than the host. Each is demanded afresh, above what the host has, and
// what is granted to it gets another gateway. One that the state has come to demand by now is left alone.
type RenewGateways struct {
	Meta
	Host     id.Host          `json:"host"`
	Gateways []BegunByItsHost `json:"gateways"`
	Reason   string           `json:"reason"`
}

// BegunByItsHost is an incarnation that a host has reported.
type BegunByItsHost struct {
	Gateway     id.Gateway `json:"gateway"`
	Incarnation uint64     `json:"incarnation"`
}

func (ObserveHost) Type() Type        { return TypeObserveHost }
func (SetHostStatus) Type() Type      { return TypeSetHostStatus }
func (SetHostSchedulable) Type() Type { return TypeSetHostSchedulable }
func (DeleteHost) Type() Type         { return TypeDeleteHost }
func (CreateGateways) Type() Type     { return TypeCreateGateways }
func (RetireGateways) Type() Type     { return TypeRetireGateways }
func (RecycleGateway) Type() Type     { return TypeRecycleGateway }
func (QuarantineGateway) Type() Type  { return TypeQuarantineGateway }
func (RenewGateways) Type() Type      { return TypeRenewGateways }

func (SetHostStatus) Version() uint8      { return 1 }
func (SetHostSchedulable) Version() uint8 { return 1 }
func (DeleteHost) Version() uint8         { return 1 }
func (c ObserveHost) Version() uint8 {
	if c.StaysSilent {
		return 2
	}
	return 1
}

func (c CreateGateways) Version() uint8 {
	if c.BesidesLost {
		return 2
	}
	return 1
}
func (RetireGateways) Version() uint8    { return 1 }
func (RecycleGateway) Version() uint8    { return 1 }
func (QuarantineGateway) Version() uint8 { return 1 }
func (RenewGateways) Version() uint8     { return 1 }
