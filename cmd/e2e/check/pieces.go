package check

import "fmt"

const (
	// TriesOfOne is how many tries of one piece may be invalid, one after the other.
	TriesOfOne = 3
	// spare is how many pieces of a proof may be invalid however short it is; one more may be for every one of these that
	// are green.
	spare, greenForOne = 5, 10
)

// Pieces counts what came of the pieces of a proof, and decides what comes after each. An invalid one proves nothing: it
// is done again, but a machine that is too slow for most of them proves nothing by going on.
type Pieces struct {
	Green, Invalid int
	inRow          int // of the invalid ones, the last of which is the last piece
}

// After counts a piece. The same is to be done again where it was invalid. The error says that the proof ends here:
// something was broken, or so much was invalid that the rest would say nothing either.
func (p *Pieces) After(v Verdict) (again bool, err error) {
	switch v {
	case Green:
		p.Green++
		p.inRow = 0
		return false, nil
	case Invalid:
		p.Invalid++
		p.inRow++
	default:
		return false, fmt.Errorf("a piece is %s", v)
	}
	const remedy = "this machine is too slow for this proof, or does too much besides; the run is invalid and proves nothing: end what else runs here, and run it again"
	if p.inRow >= TriesOfOne {
		return false, fmt.Errorf("one piece was invalid %d times in a row: %s", p.inRow, remedy)
	}
	if most := spare + p.Green/greenForOne; p.Invalid > most {
		return false, fmt.Errorf("%d pieces were invalid, more than the %d that may be beside %d green ones: %s", p.Invalid, most, p.Green, remedy)
	}
	return true, nil
}

func (p *Pieces) String() string {
	return fmt.Sprintf("%d pieces green, %d invalid", p.Green, p.Invalid)
}
