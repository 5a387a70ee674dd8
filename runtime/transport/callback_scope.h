// Tells a function that would wait for every callback of an object to end that it is itself called
// by one of them.
#ifndef FABRICAST_RUNTIME_TRANSPORT_CALLBACK_SCOPE_H_
#define FABRICAST_RUNTIME_TRANSPORT_CALLBACK_SCOPE_H_

namespace fabricast {

// While it lives, this thread runs a callback of `owner`. Scopes nest.
class CallbackScope {
 public:
  explicit CallbackScope(const void* owner) : owner_(owner), outer_(innermost_) {
    innermost_ = this;
  }
  ~CallbackScope() { innermost_ = outer_; }
  CallbackScope(const CallbackScope&) = delete;
  CallbackScope& operator=(const CallbackScope&) = delete;

  static bool Inside(const void* owner) {
    for (const CallbackScope* scope = innermost_; scope != nullptr; scope = scope->outer_) {
      if (scope->owner_ == owner) return true;
    }
    return false;
  }

 private:
  static inline thread_local const CallbackScope* innermost_ = nullptr;
  const void* const owner_;
  const CallbackScope* const outer_;
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_TRANSPORT_CALLBACK_SCOPE_H_
