package policy

// The guards are denials that no bundle can loosen. They hold before policy is asked.

func guardAccess(in *Input) (Decision, bool) {
	if in.Subject.Type == "anonymous" {
		return refuse("access", "ANONYMOUS", "the gateway does not know who asks"), true
	}
	return Decision{}, false
}

func guardRelease(in *Input, r *Resource) (Decision, bool) {
	switch {
	case in.Subject.Type == "anonymous":
		return refuse("release", "ANONYMOUS", "the gateway does not know who asks"), true
	case r.Sumdb == "mismatch":
		return refuse("release", "SUMDB-MISMATCH", "the checksum database has another hash for this version"), true
	case r.Malware == "listed" && in.Action.Name != "mod": // the module graph needs the .mod; nothing of it is built
		return refuse("release", "MALWARE", "this version is listed as malware"), true
	}
	return Decision{}, false
}

// refuse is a denial made in Go.
func refuse(entry, code, text string) Decision {
	return Decision{
		Schema: DecisionSchema, Effect: Deny, Remedy: RemedyNone, Codes: []string{code},
		Reasons: []Reason{{Code: code, Rule: "guard", Severity: 4, Template: text}},
		Eval:    Eval{Entry: entry},
	}
}
