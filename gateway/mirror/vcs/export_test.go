package vcs

// Shrink lowers the bound of kept clones while runs are under way.
func (s *Source) Shrink(maxBytes int64) { s.o.MaxClones = maxBytes }
