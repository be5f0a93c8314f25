package cowcommon

import "context"

// Verdict is the result of a check.
type Verdict string

// Verdicts of a Finding.
const (
	OK   Verdict = "ok"
	Warn Verdict = "warn" // works, but not as well as it could, or something is left over
	Fail Verdict = "fail" // something does not work
)

// Finding is the result of one check, for people.
type Finding struct {
	Verdict Verdict `json:"verdict"`
	Check   string  `json:"check"` // the thing that was checked, such as "quota" or "layers"
	Detail  string  `json:"detail"`
	Advice  string  `json:"advice,omitempty"` // what to do
}

// Examiner is a Backend that can look for faults in its home. The command "cowshed doctor" asks it.
type Examiner interface {
	// Examine looks at the home and changes nothing.
	Examine(ctx context.Context) []Finding
}

// Examine is Examiner.Examine. It finds nothing if the backend is no Examiner.
func Examine(ctx context.Context, backend Backend) []Finding {
	if e, ok := As[Examiner](backend); ok {
		return e.Examine(ctx)
	}
	return nil
}
